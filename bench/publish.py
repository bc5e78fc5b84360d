#!/usr/bin/env python3
"""Writes the README's speed section and its plots from what mpq_bench measured.

    bench/publish.py RESULTS.json [MORE.json ...]

The tables go between the README's "bench table" markers, the plots to bench/plots. Several files are
taken together; where they measured the same, the last one counts. Peers are what peers-h200.csv has,
each scaled by cuBLAS's time here over its time there.
"""

import argparse
import csv
import json
import math
import pathlib
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

BENCH = pathlib.Path(__file__).resolve().parent
README = BENCH.parent / "README.md"
BEGIN, END = "<!-- bench table -->\n", "<!-- end of bench table -->\n"
TABLE_SHAPES = [(4096, 4096), (8192, 8192), (28672, 4096), (8192, 28672)]
WIDTHS = [8, 4, 2, 1]
LEAST_OF_MANY = 128  # rows
ZERO_NAMES = {  # of the table of other groups, in this order
    "int": "integer",
    "affine": "affine, 16 bits",
    "affine-f32": "affine, float32",
}
PEER_NAMES = {
    "marlin_vllm": "Marlin",
    "machete": "Machete",
    "humming": "humming",
    "exllama_gptq": "exllama",
    "tinygemm_bf16": "tinygemm",
    "gemlite": "GemLite",
    "seed_mpq": "bitorch-engine",
}


class Results:
    """Rows of several files by (bits, dtype, zeros, group, mode, N, K, M)."""

    @property
    def where(self):
        return f"{self.device['name']}, CUDA {self.device['runtime']}"

    def __init__(self, files):
        self.rows = {}
        self.device = None
        for file in files:
            data = json.loads(pathlib.Path(file).read_text())
            if self.device not in (None, data["device"]):
                sys.exit(f"{file}: {data['device']} is not where the files before were measured")
            self.device = data["device"]
            for row in data["rows"]:
                key = (row["bits"], row["dtype"], row["zeros"], row["group"], row["mode"])
                self.rows[*key, row["N"], row["K"], row["M"]] = row

    def get(self, bits, shape, m, dtype="f16", mode="isolated", zeros="int", group=128):
        return self.rows.get((bits, dtype, zeros, group, mode, *shape, m))

    def batches(self, mode="isolated", zeros="int", group=128):
        return sorted({key[7] for key in self.rows if key[2:5] == (zeros, group, mode)})

    def shapes(self):
        return sorted({key[5:7] for key in self.rows})

    def other_groups(self):
        """(zeros, group) beside those of the main tables, of each kind the largest groups first."""
        kinds = {key[2:4] for key in self.rows if key[2] in ZERO_NAMES and key[4] == "isolated"}
        kinds -= {("int", 128)}
        return sorted(kinds, key=lambda kind: (list(ZERO_NAMES).index(kind[0]), -kind[1]))

    def of_shapes(self, field, bits, m, mode="isolated", zeros="int", group=128):
        """A figure of every shape that was measured."""
        rows = [
            self.get(bits, shape, m, mode=mode, zeros=zeros, group=group) for shape in self.shapes()
        ]
        return [row[field] for row in rows if row]

    def mean_share(self, bits, m, mode="isolated", zeros="int", group=128):
        """Geometric mean over the shapes that were measured, and how many these are."""
        return geometric_mean(self.of_shapes("share", bits, m, mode, zeros, group))


def geometric_mean(values):
    if not values:
        return math.nan, 0
    return math.exp(sum(map(math.log, values)) / len(values)), len(values)


def mean_and_least(values):
    return f"{geometric_mean(values)[0]:.2f}, {min(values):.2f}" if values else "-"


def cell(row):
    if row is None:
        return "-"
    us = row["us"]
    text = f"{us:.1f}" if us < 100 else f"{us:.0f}"
    return f"{text} us, {row['share']:.2f}, {row['ratio_cublas']:.2f}"


def table(head, lines):
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(out + ["| " + " | ".join(line) + " |" for line in lines]) + "\n"


def tables(results, note):
    shapes = [shape for shape in TABLE_SHAPES if shape in results.shapes()]
    text = (
        f"{results.where}, float16, groups of 128, integer zeros; CUDA-graph replay over at least 400 MB"
        " of rotating weights,\nmedians, cuBLAS on dense float16 weights interleaved in the same run. A cell"
        " has the time, the share of the limit (limit / time)\nand the ratio to cuBLAS (cuBLAS time /"
        " ours). `bench/NOTES.md` says what holds the kernels back.\n"
    )
    text += f"{note}\n\n" if note else "\n"
    text += "4 bits, `out_features x in_features`:\n\n"
    text += table(
        ["batch"] + [f"{n}x{k}" for n, k in shapes],
        [
            [str(m)] + [cell(results.get(4, shape, m)) for shape in shapes]
            for m in results.batches()
            if any(results.get(4, shape, m) for shape in shapes)
        ],
    )
    text += "\n8192x8192, all widths:\n\n"
    text += table(
        ["batch"] + [f"{bits} bit{'s' if bits > 1 else ''}" for bits in WIDTHS],
        [
            [str(m)] + [cell(results.get(bits, (8192, 8192), m)) for bits in WIDTHS]
            for m in results.batches()
            if all(results.get(bits, (8192, 8192), m) for bits in WIDTHS)
        ],
    )
    many = [m for m in results.batches() if m >= LEAST_OF_MANY]
    if many:
        text += "\nMany rows: cuBLAS time / ours, geometric mean over the shapes, and the least of them:\n\n"
        text += table(
            ["bits"] + [f"batch {m}" for m in many],
            [
                [str(bits)]
                + [mean_and_least(results.of_shapes("ratio_cublas", bits, m)) for m in many]
                for bits in WIDTHS
            ],
        )
    symmetric = [m for m in results.batches(zeros="none") if m in results.batches()]
    if symmetric:
        text += "\nSymmetric weights, whose zeros are a power of two: share of the limit with integer zeros,"
        text += " and without,\ngeometric mean over the shapes:\n\n"
        text += table(
            ["bits"] + [f"batch {m}" for m in symmetric],
            [
                [str(bits)]
                + [
                    ", ".join(f"{results.mean_share(bits, m, zeros=z)[0]:.2f}" for z in ("int", "none"))
                    for m in symmetric
                ]
                for bits in WIDTHS
                if results.of_shapes("share", bits, symmetric[0], zeros="none")
            ],
        )
    others = results.other_groups()
    if others:
        batches = results.batches(zeros=others[0][0], group=others[0][1])
        text += "\nOther groups, and affine zeros (`w = s q + b`): share of the limit, which counts their bytes,"
        text += " geometric mean over the shapes:\n\n"
        text += table(
            ["bits", "zeros", "groups of"] + [f"batch {m}" for m in batches],
            [
                [str(bits), ZERO_NAMES[zeros], str(group)]
                + [f"{results.mean_share(bits, m, zeros=zeros, group=group)[0]:.2f}" for m in batches]
                for bits in WIDTHS
                for zeros, group in [("int", 128), *others]
                if results.of_shapes("share", bits, batches[0], zeros=zeros, group=group)
            ],
        )
    chained = results.batches("chained")
    if chained:
        text += "\nShare of the limit, geometric mean over the shapes; chained: layer after layer with"
        text += " programmatic dependent launch,\nagainst a chain of plain reads:\n\n"
        text += table(
            ["bits"] + [f"{mode}, batch {m}" for mode in ("isolated", "chained") for m in chained],
            [
                [str(bits)]
                + [
                    f"{results.mean_share(bits, m, mode)[0]:.2f}"
                    for mode in ("isolated", "chained")
                    for m in chained
                ]
                for bits in WIDTHS
            ],
        )
    return text


def peers(results):
    """{name: {(bits, N, K, M): us on this device}}, by cuBLAS's time here and there."""
    there, times = {}, {}
    with open(BENCH / "peers-h200.csv", newline="") as file:
        for line in csv.DictReader(file):
            key = (int(line["N"]), int(line["K"]), int(line["M"]))
            if line["impl"] == "cublas_fp16":
                there[key] = float(line["us"])
            elif line["impl"] in PEER_NAMES:
                times.setdefault(line["impl"], {})[(int(line["bits"]), *key)] = float(line["us"])
    scaled = {}
    for name, measured in times.items():
        for (bits, n, k, m), us in measured.items():
            row = results.get(bits, (n, k), m)
            if row and (n, k, m) in there:
                here = row["cublas_us"] / there[(n, k, m)] * us
                scaled.setdefault(PEER_NAMES[name], {})[(bits, n, k, m)] = here
    return scaled


def plot(results, bits, directory):
    """Share of the limit against the batch; every line over the shapes that its maker was run on."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, times in sorted(peers(results).items()):
        line = []
        for m in results.batches():
            shares = [
                results.get(b, (n, k), batch)["limit_us"] / us
                for (b, n, k, batch), us in times.items()
                if b == bits and batch == m
            ]
            if shares:
                line.append((m, geometric_mean(shares)[0]))
        if line:
            axes.plot(*zip(*line), marker=".", linewidth=1, label=name)
    ours = [(m, results.mean_share(bits, m)[0]) for m in results.batches()]
    ours = [(m, share) for m, share in ours if not math.isnan(share)]
    if not ours:
        plt.close(figure)
        return None
    axes.plot(*zip(*ours), marker="o", linewidth=2.5, color="black", label="mpq")
    axes.set_xscale("log", base=2)
    axes.set_xticks([m for m, _ in ours], [str(m) for m, _ in ours])
    axes.set_ylim(0, 1.1)
    axes.axhline(1, color="gray", linewidth=0.5)
    axes.set_xlabel("batch")
    axes.set_ylabel("share of the limit")
    axes.set_title(f"{bits}-bit weights, {results.where}")
    axes.legend(fontsize=8, ncols=2)
    figure.tight_layout()
    path = directory / f"share-w{bits}.svg"
    figure.savefig(path, metadata={"Date": None})  # the same input, the same file
    plt.close(figure)
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", nargs="+", help="JSON files of mpq_bench --json")
    parser.add_argument("--note", help="what a reader of the tables must know besides")
    arguments = parser.parse_args()
    results = Results(arguments.results)
    if not results.batches():
        sys.exit("no rows with groups of 128 and integer zeros")

    readme = README.read_text()
    if BEGIN not in readme or END not in readme:
        sys.exit(f"{README}: no line {BEGIN.strip()} or {END.strip()}")
    matplotlib.rcParams["svg.hashsalt"] = "mpq"
    matplotlib.rcParams["svg.fonttype"] = "none"
    directory = BENCH / "plots"
    directory.mkdir(exist_ok=True)
    text = tables(results, arguments.note) + "\n"
    for bits in WIDTHS:
        path = plot(results, bits, directory)
        if path:
            text += f"![Share of the limit against the batch, {bits}-bit weights]({path.relative_to(README.parent)})\n"
    before, rest = readme.split(BEGIN, 1)
    README.write_text(before + BEGIN + text + END + rest.split(END, 1)[1])


if __name__ == "__main__":
    main()

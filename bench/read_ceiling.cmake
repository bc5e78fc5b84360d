# mpq_read_ceiling: what device memory can be read at, for the benchmarks and an example.
include_guard(GLOBAL)
set(here "${CMAKE_CURRENT_LIST_DIR}")
add_library(mpq_read_ceiling STATIC
  "${here}/cuda_support.cpp" "${here}/device_kernels.cu" "${here}/read_ceiling.cu")
target_include_directories(mpq_read_ceiling PUBLIC "${here}")
target_link_libraries(mpq_read_ceiling PUBLIC mpq::mpq mpq_private_packages CUDA::cudart_static)
mpq_warnings(mpq_read_ceiling)

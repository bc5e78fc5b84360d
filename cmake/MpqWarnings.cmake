# mpq_warnings(target [ADDRESSES_ONLY]): our own warnings, and the sanitizers where they are on. Never
# for consumers. ADDRESSES_ONLY: without the other sanitizer, which takes a third of the time to
# compile: for tests and programs around the library.
function(mpq_warnings target)
  cmake_parse_arguments(PARSE_ARGV 1 of "ADDRESSES_ONLY" "" "")
  set(host_warnings -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion
      -Wnon-virtual-dtor -Wold-style-cast)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    # std::string's own code (GCC bug 105651 and its like).
    list(APPEND host_warnings -Wno-restrict -Wno-stringop-overflow -Wno-array-bounds)
  endif()
  if(MPQ_SANITIZE AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    list(APPEND host_warnings -Wno-maybe-uninitialized)  # inside <regex> (GCC bug 105562)
  endif()
  if(MPQ_WARNINGS_AS_ERRORS)
    list(APPEND host_warnings -Werror)
    set(cuda_errors -Werror=all-warnings)
  endif()
  target_compile_options(${target} PRIVATE
    "$<$<COMPILE_LANGUAGE:CXX>:${host_warnings}>"
    "$<$<COMPILE_LANG_AND_ID:CUDA,NVIDIA>:${cuda_errors};-Xcompiler=-Wall,-Wextra>")
  if(MPQ_SANITIZE)
    set(sanitizers address,undefined)
    if(of_ADDRESSES_ONLY)
      set(sanitizers address)
    endif()
    target_compile_options(${target} PRIVATE
      "$<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${sanitizers};-fno-sanitize-recover=all;-fno-omit-frame-pointer>")
    target_link_options(${target} PUBLIC -fsanitize=address,undefined)
  endif()
  if(MPQ_FUZZ)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=fuzzer-no-link>)
  endif()
endfunction()

# mpq_precompile(target headers...): parsing these once takes a third off our own build. Not where mpq
# is part of another project.
function(mpq_precompile target)
  if(PROJECT_IS_TOP_LEVEL)
    foreach(header IN LISTS ARGN)
      target_precompile_headers(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:${header}>")
    endforeach()
  endif()
endfunction()

# mpq_unite(target files): so many files at a time are one translation unit, so what they all include and
# instantiate is compiled once. For programs whose files are parts of one namespace; not where mpq is part
# of another project, as above.
function(mpq_unite target files)
  if(PROJECT_IS_TOP_LEVEL)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE ${files})
  endif()
endfunction()

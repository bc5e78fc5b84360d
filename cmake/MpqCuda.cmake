# Decides whether CUDA is built (MPQ_CUDA) and for which architectures.
set(MPQ_CUDA OFF)
if(NOT MPQ_ENABLE_CUDA STREQUAL "OFF" AND MPQ_ENABLE_CUDA)
  if("${CMAKE_CUDA_COMPILER}" MATCHES "NOTFOUND$")
    unset(CMAKE_CUDA_COMPILER CACHE)  # a toolkit may have been installed since
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --version OUTPUT_VARIABLE mpq_nvcc ERROR_QUIET)
    if(mpq_nvcc MATCHES "release ([0-9.]+)" AND CMAKE_MATCH_1 VERSION_LESS 12.0)
      set(mpq_no_cuda "${CMAKE_CUDA_COMPILER} is CUDA ${CMAKE_MATCH_1}, C++20 needs 12.0")
    else()
      set(MPQ_CUDA ON)
    endif()
  else()
    set(mpq_no_cuda "no CUDA compiler was found")
  endif()
  if(NOT MPQ_CUDA AND NOT MPQ_ENABLE_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "MPQ_ENABLE_CUDA is ${MPQ_ENABLE_CUDA}, but ${mpq_no_cuda}")
  elseif(NOT MPQ_CUDA)
    message(STATUS "mpq: ${mpq_no_cuda}, building the CPU back end only")
  endif()
endif()

# mpq_choose_architectures(out): CMAKE_CUDA_ARCHITECTURES as the user or the parent project set it, less
# what is older than the kernels' instructions (sm_80); else Ampere machine code with its PTX for
# everything after it, and Hopper's own instructions.
function(mpq_choose_architectures out)
  set(architectures "${CMAKE_CUDA_ARCHITECTURES}")
  # A parent that enables CUDA without choosing has nvcc's oldest architecture in the cache, under this
  # help text. The same text stands over a choice by the environment variable CUDAARCHS, which later
  # runs of CMake may not see any more.
  if(NOT DEFINED CACHE{mpq_cudaarchs})
    set(mpq_cudaarchs "$ENV{CUDAARCHS}" CACHE INTERNAL "CUDAARCHS at the first configuration")
  endif()
  get_property(help CACHE CMAKE_CUDA_ARCHITECTURES PROPERTY HELPSTRING)
  if("${architectures}" STREQUAL "" OR (help STREQUAL "CUDA architectures"
     AND mpq_cudaarchs STREQUAL "" AND architectures STREQUAL "$CACHE{CMAKE_CUDA_ARCHITECTURES}"))
    set(architectures "80;90a-real")
  elseif(architectures STREQUAL "all" AND CMAKE_CUDA_ARCHITECTURES_ALL)
    set(architectures "${CMAKE_CUDA_ARCHITECTURES_ALL}")
  elseif(architectures STREQUAL "all-major" AND CMAKE_CUDA_ARCHITECTURES_ALL_MAJOR)
    set(architectures "${CMAKE_CUDA_ARCHITECTURES_ALL_MAJOR}")
  endif()
  set(kept "")
  foreach(architecture IN LISTS architectures)
    string(REGEX MATCH "^[0-9]+" number "${architecture}")
    if(number STREQUAL "" OR number GREATER_EQUAL 80)
      list(APPEND kept "${architecture}")
    else()
      message(STATUS "mpq: leaving out CUDA architecture ${architecture}; the kernels need 80 or newer")
    endif()
  endforeach()
  if(kept STREQUAL "")
    message(FATAL_ERROR "mpq: CMAKE_CUDA_ARCHITECTURES is \"${CMAKE_CUDA_ARCHITECTURES}\", but the "
                        "kernels need 80 or newer (or set MPQ_ENABLE_CUDA=OFF)")
  endif()
  set(${out} "${kept}" PARENT_SCOPE)
endfunction()

if(MPQ_CUDA)
  if(NOT CMAKE_CUDA_ARCHITECTURES AND "$ENV{CUDAARCHS}" STREQUAL "")
    mpq_choose_architectures(CMAKE_CUDA_ARCHITECTURES)  # before nvcc's default takes the place
  endif()
  enable_language(CUDA)
  mpq_choose_architectures(CMAKE_CUDA_ARCHITECTURES)
  # No CMAKE_CUDA_STANDARD 20 here: CMake 3.25 does not know nvcc's flag. mpq::headers sets it.
  find_package(CUDAToolkit 12.0 REQUIRED)
endif()

# mpq_configure_instances(out directory suffix): one translation unit per kernel family x bits x
# activation type, so that cores build them in parallel and none takes minutes.
function(mpq_configure_instances out directory suffix)
  foreach(family decode prefill_sm80 prefill_sm90)
    foreach(MPQ_INSTANCE_BITS 1 2 4 8)
      foreach(MPQ_INSTANCE_DTYPE f16 bf16)
        set(instance "${directory}/${family}_w${MPQ_INSTANCE_BITS}_${MPQ_INSTANCE_DTYPE}${suffix}")
        configure_file("${PROJECT_SOURCE_DIR}/kernels/instances/${family}.cu.in" "${instance}" @ONLY)
        list(APPEND instances "${instance}")
      endforeach()
    endforeach()
  endforeach()
  set(${out} "${instances}" PARENT_SCOPE)
endfunction()

# mpq_kernel_instances(target): the target's kernels, for all families.
function(mpq_kernel_instances target)
  mpq_configure_instances(instances "${PROJECT_BINARY_DIR}/instances" .cu)
  target_sources(${target} PRIVATE ${instances})
  target_include_directories(${target} PRIVATE kernels)
  # Whether kernels with Hopper's own instructions can be chosen (DeviceTraits::sm90a_code).
  if(CMAKE_CUDA_ARCHITECTURES MATCHES "(^|;)90a(-real)?(;|$)")
    target_compile_definitions(${target} PRIVATE MPQ_SM90A_CODE=1)
  else()
    target_compile_definitions(${target} PRIVATE MPQ_SM90A_CODE=0)
  endif()
endfunction()

# mpq_compress_kernels(target): machine code takes an eighth of the space, where nvcc can do that (CUDA
# 12.8); the driver unpacks it when it is loaded.
function(mpq_compress_kernels target)
  include(CheckCompilerFlag)
  check_compiler_flag(CUDA -compress-mode=size MPQ_NVCC_COMPRESSES)
  if(MPQ_NVCC_COMPRESSES)
    target_compile_options(${target} PRIVATE
      "$<$<COMPILE_LANG_AND_ID:CUDA,NVIDIA>:-compress-mode=size>")
  endif()
endfunction()

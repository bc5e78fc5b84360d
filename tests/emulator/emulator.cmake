# mpq_emulate_cuda(target): the CUDA back end with the kernels compiled for the host (engine.hpp), for
# tests where there is no GPU, under the sanitizers too. Needs CUDA's headers and Boost.Context.
function(mpq_emulate_cuda target)
  find_package(CUDAToolkit 12.0 QUIET)
  find_package(Boost QUIET COMPONENTS context)
  if(NOT CUDAToolkit_FOUND OR NOT Boost_CONTEXT_FOUND)
    message(STATUS "mpq: no CUDA headers or no Boost.Context, leaving out the emulated device")
    return()
  endif()
  set(here "${PROJECT_SOURCE_DIR}/tests/emulator")
  set(there "${PROJECT_BINARY_DIR}/emulated")

  # The kernels' own files; ptx/ and launch.cuh and occupancy.cu are the emulator's.
  file(GLOB kernels CONFIGURE_DEPENDS RELATIVE "${PROJECT_SOURCE_DIR}/kernels"
       "${PROJECT_SOURCE_DIR}/kernels/*.cuh" "${PROJECT_SOURCE_DIR}/kernels/*.hpp")
  list(REMOVE_ITEM kernels launch.cuh)
  foreach(file IN LISTS kernels)
    configure_file("${PROJECT_SOURCE_DIR}/kernels/${file}" "${there}/${file}" COPYONLY)
  endforeach()
  file(GLOB replaced CONFIGURE_DEPENDS RELATIVE "${here}" "${here}/ptx/*.cuh" "${here}/launch.cuh")
  foreach(file IN LISTS replaced)
    configure_file("${here}/${file}" "${there}/${file}" COPYONLY)
  endforeach()

  mpq_configure_instances(instances "${there}" .cpp)
  foreach(file check_values gather numbers prepare quantize)
    configure_file("${PROJECT_SOURCE_DIR}/kernels/${file}.cu" "${there}/${file}.cpp" COPYONLY)
    list(APPEND instances "${there}/${file}.cpp")
  endforeach()
  file(GLOB emulator CONFIGURE_DEPENDS "${here}/*.cpp")
  set(device_code ${instances} ${emulator})
  # Written for nvcc: its pragmas, and warnings that are another compiler's taste. Of the sanitizers
  # the address sanitizer is what finds things here; the other one doubles the time to compile.
  set(options -w -Wno-psabi -include "${here}/builtins.hpp")
  if(MPQ_SANITIZE)
    # -O1 takes half as long again to compile, and saves less than that in the tests.
    list(APPEND options -Og -g0 -fno-sanitize=undefined)
    # Kernels' local arrays are registers, with constants for indices: not looked at, a quarter less to
    # compile.
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      list(APPEND options --param=asan-stack=0)
    endif()
  endif()
  set_source_files_properties(${device_code} PROPERTIES
    SKIP_PRECOMPILE_HEADERS ON COMPILE_OPTIONS "${options}")
  # bfloat16 takes float16's way through memory, where it is looked at: a third less to compile.
  if(MPQ_SANITIZE)
    set(second ${instances})
    list(FILTER second INCLUDE REGEX "_bf16\\.cpp$")
    set_source_files_properties(${second} PROPERTIES
      COMPILE_OPTIONS "${options};-fno-sanitize=all")
  endif()
  set_source_files_properties("${here}/engine.cpp" "${here}/tensor.cpp" PROPERTIES
    COMPILE_OPTIONS "${options};-O2")
  set_source_files_properties("${here}/products.cpp" PROPERTIES
    COMPILE_OPTIONS "${options};-O3;-fno-sanitize=all")
  file(GLOB backend CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/src/cuda/*.cpp")
  target_sources(${target} PRIVATE ${device_code} ${backend})
  target_include_directories(${target} PRIVATE "${there}" "${here}")
  target_include_directories(${target} SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  target_compile_definitions(${target} PRIVATE MPQ_WITH_CUDA=1 MPQ_SM90A_CODE=1)
  target_link_libraries(${target} PRIVATE Boost::context)
  set(MPQ_EMULATED ON PARENT_SCOPE)
endfunction()

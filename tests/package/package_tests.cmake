# mpq as other projects use it, and its headers one by one.
if(MPQ_SANITIZE)
  return()  # a consumer would have to be compiled like the library
endif()

set(mpq_package_dir "${CMAKE_CURRENT_LIST_DIR}")
set(mpq_package_ways add_subdirectory fetch_content)
if(MPQ_INSTALL)
  list(APPEND mpq_package_ways build_tree install)
endif()
if(MPQ_CUDA)
  list(APPEND mpq_package_ways architectures)
endif()
foreach(way IN LISTS mpq_package_ways)
  add_test(NAME "package: ${way}"
    COMMAND "${CMAKE_COMMAND}" "-DWAY=${way}" "-DGENERATOR=${CMAKE_GENERATOR}"
            "-DCXX_COMPILER=${CMAKE_CXX_COMPILER}" "-DCUDA_COMPILER=$<$<BOOL:${MPQ_CUDA}>:${CMAKE_CUDA_COMPILER}>"
            "-DMPQ_SOURCE_DIR=${PROJECT_SOURCE_DIR}" "-DMPQ_BINARY_DIR=${PROJECT_BINARY_DIR}"
            "-DWORK_DIR=${CMAKE_CURRENT_BINARY_DIR}/package/${way}"
            -P "${mpq_package_dir}/use_package.cmake")
  set_tests_properties("package: ${way}" PROPERTIES TIMEOUT 900)
  if(way STREQUAL "architectures")  # the longest begins first
    set_tests_properties("package: ${way}" PROPERTIES COST 20)
  endif()
  if(way MATCHES "^(build_tree|install)$")  # which build with all cores themselves
    set_tests_properties("package: ${way}" PROPERTIES RUN_SERIAL ON)
  endif()
endforeach()

if(MPQ_CUDA)
  find_program(MPQ_CUOBJDUMP cuobjdump HINTS "${CUDAToolkit_BIN_DIR}")
  add_test(NAME "package: no local memory, no float atomics"
    COMMAND "${mpq_package_dir}/machine_code.sh" "$<TARGET_FILE:mpq>" ${MPQ_CUOBJDUMP})
  set_tests_properties("package: no local memory, no float atomics" PROPERTIES SKIP_RETURN_CODE 77)
endif()

# Every public header compiles alone, first in its translation unit, with no other include path.
file(GLOB mpq_public_headers CONFIGURE_DEPENDS RELATIVE "${PROJECT_SOURCE_DIR}/include"
     "${PROJECT_SOURCE_DIR}/include/mpq/*.hpp")
foreach(header IN LISTS mpq_public_headers)
  string(MAKE_C_IDENTIFIER "${header}" identifier)
  set(unit "${CMAKE_CURRENT_BINARY_DIR}/package/headers/${identifier}.cpp")
  file(CONFIGURE OUTPUT "${unit}" @ONLY CONTENT "#include <@header@>\n#include <@header@>\n")
  add_test(NAME "package: ${header} compiles alone"
    COMMAND "${CMAKE_CXX_COMPILER}" -std=c++20 -fsyntax-only -Wall -Wextra -Wpedantic -Wconversion
            -Wsign-conversion -Wshadow -Werror -I "${PROJECT_SOURCE_DIR}/include" "${unit}")
endforeach()

# The code in the README is a program that runs.
file(READ "${PROJECT_SOURCE_DIR}/README.md" mpq_readme)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/README.md")
string(FIND "${mpq_readme}" "```cpp\n" mpq_code_begin)
string(SUBSTRING "${mpq_readme}" ${mpq_code_begin} -1 mpq_code)
string(FIND "${mpq_code}" "\n```\n" mpq_code_size)
math(EXPR mpq_code_size "${mpq_code_size} - 6")
string(SUBSTRING "${mpq_code}" 7 ${mpq_code_size} mpq_code)
file(CONFIGURE OUTPUT "${CMAKE_CURRENT_BINARY_DIR}/package/readme.cpp" @ONLY CONTENT "@mpq_code@")
add_executable(mpq_readme_example "${CMAKE_CURRENT_BINARY_DIR}/package/readme.cpp")
target_link_libraries(mpq_readme_example PRIVATE mpq::mpq)
add_test(NAME "package: code of the README" COMMAND mpq_readme_example
         WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")

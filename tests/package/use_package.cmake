# cmake -DWAY=... -DMPQ_SOURCE_DIR=... -DMPQ_BINARY_DIR=... -DWORK_DIR=... -P use_package.cmake
# Configures, builds and runs the consumer project. WAY: build_tree or install; or add_subdirectory,
# which compiles it only; or fetch_content and architectures, which only configure.
cmake_minimum_required(VERSION 3.25)

function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    list(JOIN ARGV " " command)
    message(FATAL_ERROR "failed (${result}): ${command}")
  endif()
endfunction()

file(REMOVE_RECURSE "${WORK_DIR}")
file(MAKE_DIRECTORY "${WORK_DIR}")
set(configure "${CMAKE_COMMAND}" -G "${GENERATOR}" "-DCMAKE_CXX_COMPILER=${CXX_COMPILER}" -Wno-dev
    "-DMPQ_SOURCE_DIR=${MPQ_SOURCE_DIR}")
if(CUDA_COMPILER)
  list(APPEND configure "-DCMAKE_CUDA_COMPILER=${CUDA_COMPILER}")
endif()

if(WAY STREQUAL "architectures")
  # The parent's choice (default: nvcc's own), and what mpq makes of it; commas for semicolons.
  foreach(case default=80,90a-real 75,86-real=86-real 90=90 80,90a-real=80,90a-real)
    string(REPLACE "," "\\;" case "${case}")
    string(REGEX MATCH "^([^=]*)=(.*)$" case "${case}")
    run(${configure} -S "${CMAKE_CURRENT_LIST_DIR}/architectures" -B "${WORK_DIR}/build" --fresh
        "-DPARENT=${CMAKE_MATCH_1}" "-DEXPECTED=${CMAKE_MATCH_2}" -DMPQ_ENABLE_CUDA=ON)
  endforeach()
  return()
endif()

# Who links mpq needs none of what it is built with.
set(without_packages -DCMAKE_DISABLE_FIND_PACKAGE_fmt=ON
    -DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON)
if(WAY STREQUAL "build_tree")
  list(APPEND configure "-Dmpq_DIR=${MPQ_BINARY_DIR}" ${without_packages})
elseif(WAY STREQUAL "install")
  # Moved after it was installed: nothing in it may know where it was.
  run("${CMAKE_COMMAND}" --install "${MPQ_BINARY_DIR}" --prefix "${WORK_DIR}/first")
  file(RENAME "${WORK_DIR}/first" "${WORK_DIR}/prefix")
  list(APPEND configure "-DCMAKE_PREFIX_PATH=${WORK_DIR}/prefix" ${without_packages})
elseif(WAY STREQUAL "add_subdirectory")
  list(APPEND configure -DWAY=add_subdirectory -DMPQ_ENABLE_CUDA=OFF)
elseif(WAY STREQUAL "fetch_content")
  list(APPEND configure -DWAY=fetch_content -DMPQ_ENABLE_CUDA=OFF
       "-DFETCHCONTENT_SOURCE_DIR_MPQ=${MPQ_SOURCE_DIR}" -DFETCHCONTENT_FULLY_DISCONNECTED=ON)
else()
  message(FATAL_ERROR "WAY is \"${WAY}\"")
endif()
# The headers' kernels are the same in both trees, so one of them is enough.
if(CUDA_COMPILER AND WAY STREQUAL "install")
  list(APPEND configure -DWITH_KERNELS=ON)
endif()

set(build "${WORK_DIR}/build")
run(${configure} -S "${CMAKE_CURRENT_LIST_DIR}/consumer" -B "${build}")
if(WAY STREQUAL "fetch_content")
  return()  # mpq::mpq exists, or this had failed; from here on it is add_subdirectory
endif()
if(WAY STREQUAL "add_subdirectory")
  # What is missing to link is mpq, which is being built elsewhere: the phase with sanitizers has it as
  # it would be here, without precompiled headers.
  run("${CMAKE_COMMAND}" --build "${build}" --target consumer_objects)
  return()
endif()
run("${CMAKE_COMMAND}" --build "${build}" --parallel)
run("${build}/consumer")
if(CUDA_COMPILER AND WAY STREQUAL "install")
  run("${build}/kernel_consumer")
endif()

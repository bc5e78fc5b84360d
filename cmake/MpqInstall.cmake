# find_package(mpq) from the install prefix and from the build tree.
include(CMakePackageConfigHelpers)

set(mpq_cmake_dir "${CMAKE_INSTALL_LIBDIR}/cmake/mpq")
install(TARGETS mpq mpq_headers EXPORT mpqTargets ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(DIRECTORY include/mpq DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(DIRECTORY kernels/ DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/mpq/kernels"
        FILES_MATCHING PATTERN "*.cuh" PATTERN "*.hpp" PATTERN "instances" EXCLUDE)
install(FILES LICENSE README.md DESTINATION "${CMAKE_INSTALL_DOCDIR}")
if(MPQ_BUILD_TOOL)
  install(TARGETS mpq_tool RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
endif()

configure_package_config_file(cmake/mpqConfig.cmake.in "${PROJECT_BINARY_DIR}/mpqConfig.cmake"
                              INSTALL_DESTINATION "${mpq_cmake_dir}"
                              NO_SET_AND_CHECK_MACRO)
# Below 1.0 every minor version may change the interface.
write_basic_package_version_file("${PROJECT_BINARY_DIR}/mpqConfigVersion.cmake"
                                 COMPATIBILITY SameMinorVersion)
install(EXPORT mpqTargets NAMESPACE mpq:: DESTINATION "${mpq_cmake_dir}")
install(FILES "${PROJECT_BINARY_DIR}/mpqConfig.cmake" "${PROJECT_BINARY_DIR}/mpqConfigVersion.cmake"
        DESTINATION "${mpq_cmake_dir}")
export(EXPORT mpqTargets NAMESPACE mpq:: FILE "${PROJECT_BINARY_DIR}/mpqTargets.cmake")

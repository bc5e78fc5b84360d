# The mpq program as its users call it: a test that runs it.
add_executable(mpq_tool_tests ${CMAKE_CURRENT_LIST_DIR}/tool_test.cpp
               ${CMAKE_CURRENT_LIST_DIR}/checkpoint_commands_test.cpp
               ${CMAKE_CURRENT_LIST_DIR}/malformed_test.cpp
               host/main.cpp)
target_link_libraries(mpq_tool_tests PRIVATE mpq_test_support)
target_compile_definitions(mpq_tool_tests PRIVATE MPQ_TOOL="$<TARGET_FILE:mpq_tool>")
mpq_warnings(mpq_tool_tests ADDRESSES_ONLY)
mpq_precompile(mpq_tool_tests "${CMAKE_CURRENT_SOURCE_DIR}/support/catch.hpp")
add_dependencies(mpq_tool_tests mpq_tool)
catch_discover_tests(mpq_tool_tests TEST_PREFIX "tool: " ${mpq_catch_arguments})

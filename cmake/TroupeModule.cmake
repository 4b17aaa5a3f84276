# The helpers every CMakeLists.txt of this project is made of.

include(CMakePackageConfigHelpers)
include(CheckIPOSupported)

# -- compile options, never exported --------------------------------------------------------------

add_library(troupe_options INTERFACE)
target_compile_features(troupe_options INTERFACE cxx_std_20)
target_compile_options(
  troupe_options
  INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wconversion;-Wsign-conversion;-Wshadow;-Wnon-virtual-dtor;-Wold-style-cast>
    $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<BOOL:${TROUPE_WARNINGS_AS_ERRORS}>>:-Werror>)
if(TROUPE_SANITIZERS)
  target_compile_options(troupe_options INTERFACE -fsanitize=${TROUPE_SANITIZERS}
                                                  -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(troupe_options INTERFACE -fsanitize=${TROUPE_SANITIZERS})
  # A check at every access to memory: a quarter of the compiler's time, and the address sanitizer sees
  # most of it. The fuzzers are built with them.
  if(TROUPE_SANITIZERS MATCHES "undefined")
    target_compile_options(troupe_options INTERFACE -fno-sanitize=null,vptr,alignment,object-size,pointer-overflow)
  endif()
endif()

# -- troupe_module(<name> HEADERS ... SOURCES ... PUBLIC ... PRIVATE ...) --------------------------
# Creates troupe_<name> with alias troupe::<name>. Each module has its own include root, so a module
# can only include a module it links: the compiler enforces the layer diagram.

function(troupe_module name)
  cmake_parse_arguments(arg "" "" "HEADERS;SOURCES;PUBLIC;PRIVATE" ${ARGN})
  set(target troupe_${name})
  add_library(${target} ${arg_SOURCES})
  add_library(troupe::${name} ALIAS ${target})
  target_sources(${target} PUBLIC FILE_SET HEADERS BASE_DIRS include FILES ${arg_HEADERS})
  target_include_directories(${target} PRIVATE src)
  target_link_libraries(${target} PUBLIC ${arg_PUBLIC} PRIVATE $<BUILD_INTERFACE:troupe_options> ${arg_PRIVATE})
  target_compile_features(${target} PUBLIC cxx_std_20)
  set_target_properties(
    ${target}
    PROPERTIES EXPORT_NAME ${name}
               CXX_EXTENSIONS OFF
               VERIFY_INTERFACE_HEADER_SETS ON
               POSITION_INDEPENDENT_CODE ON)
  install(
    TARGETS ${target}
    EXPORT troupeTargets
    FILE_SET HEADERS)
endfunction()

# -- troupe_test(<module> <name> [SOURCES ...] [LABELS ...] [LINK ...]) -----------------------------
# One executable per test file, discovered case by case.

function(troupe_test module name)
  cmake_parse_arguments(arg "" "" "SOURCES;LABELS;LINK" ${ARGN})
  set(target ${module}_${name})
  add_executable(${target} ${name}.cpp ${arg_SOURCES})
  target_link_libraries(${target} PRIVATE troupe::${module} troupe_options GTest::gtest GTest::gtest_main ${arg_LINK})
  target_compile_options(${target} PRIVATE -Wno-old-style-cast)
  # Without a sanitizer the compiler cache has the engine's tests: the pure preset has made them.
  if(TROUPE_PRECOMPILED_HEADERS AND (TROUPE_SANITIZERS OR NOT module STREQUAL "engine"))
    target_precompile_headers(${target} REUSE_FROM troupe_gtest)
    set_source_files_properties(${arg_SOURCES} PROPERTIES SKIP_PRECOMPILE_HEADERS ON)
  endif()
  if(TROUPE_SANITIZERS MATCHES "thread")
    target_link_libraries(${target} PRIVATE troupe_thread_sanitizer_suppressions)
    # UCX takes note of memory as threads begin and end, where the sanitizer cannot follow.
    set(environment ENVIRONMENT UCX_MEM_MMAP_HOOK_MODE=none)
  elseif(TROUPE_SANITIZERS MATCHES "address" AND "multiprocess" IN_LIST arg_LABELS)
    # docs/gotchas/caf-leaks-its-broker.md
    set(environment ENVIRONMENT ASAN_OPTIONS=detect_leaks=0)
  endif()
  # One label, which `ctest -L` finds by each of its words: a list would tear the properties apart.
  string(JOIN "." label "${module}" ${arg_LABELS})
  gtest_discover_tests(
    ${target}
    TEST_PREFIX "${module}."
    DISCOVERY_TIMEOUT 60
    PROPERTIES LABELS "${label}" TIMEOUT 300 ${environment})
endfunction()

function(troupe_install_package)
  set(dir "${CMAKE_INSTALL_LIBDIR}/cmake/troupe")
  install(EXPORT troupeTargets NAMESPACE troupe:: DESTINATION "${dir}")
  configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/troupeConfig.cmake.in"
                                "${PROJECT_BINARY_DIR}/troupeConfig.cmake" INSTALL_DESTINATION "${dir}")
  write_basic_package_version_file("${PROJECT_BINARY_DIR}/troupeConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
  install(FILES "${PROJECT_BINARY_DIR}/troupeConfig.cmake" "${PROJECT_BINARY_DIR}/troupeConfigVersion.cmake"
                "${PROJECT_SOURCE_DIR}/cmake/FindCAF.cmake" "${PROJECT_SOURCE_DIR}/cmake/FindDNNL.cmake"
                "${PROJECT_SOURCE_DIR}/cmake/FindUCX.cmake"
          DESTINATION "${dir}")
endfunction()

# Finds what the headers need: PyTorch, OpenMP, Eigen, fmt, nlohmann-json. Used by the build and by the installed package alike.
# The three small libraries are fetched when the system has none, or always with -DHYBRIDATTN_FETCH_DEPENDENCIES=ON.
include_guard(DIRECTORY)
include(FetchContent)

include("${CMAKE_CURRENT_LIST_DIR}/HybridattnTorch.cmake")

# Without -fopenmp at::parallel_for is silently serial.
find_package(OpenMP REQUIRED COMPONENTS CXX)

# hybridattn_dependency(<target> <package> <version> <tarball>): the system's package, or the tarball.
macro(hybridattn_dependency target package version url)
  if(NOT TARGET ${target} AND NOT HYBRIDATTN_FETCH_DEPENDENCIES)
    find_package(${package} ${version} QUIET)
  endif()
  if(NOT TARGET ${target})
    message(STATUS "hybridattn: no ${package} ${version} on this system, fetching ${url}")
    FetchContent_Declare(${package} URL ${url})
    FetchContent_MakeAvailable(${package})
  endif()
endmacro()

set(EIGEN_BUILD_DOC OFF CACHE INTERNAL "")
set(EIGEN_BUILD_TESTING OFF CACHE INTERNAL "")
set(JSON_BuildTests OFF CACHE INTERNAL "")
hybridattn_dependency(Eigen3::Eigen Eigen3 3.4 https://gitlab.com/libeigen/eigen/-/archive/3.4.0/eigen-3.4.0.tar.gz)
hybridattn_dependency(fmt::fmt-header-only fmt 9 https://github.com/fmtlib/fmt/archive/refs/tags/10.2.1.tar.gz)
hybridattn_dependency(nlohmann_json::nlohmann_json nlohmann_json 3.9
                      https://github.com/nlohmann/json/archive/refs/tags/v3.11.3.tar.gz)

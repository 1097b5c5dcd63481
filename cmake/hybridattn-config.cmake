# Package config: find_package(hybridattn) gives the target hybridattn::hybridattn.
include("${CMAKE_CURRENT_LIST_DIR}/HybridattnDependencies.cmake")
include("${CMAKE_CURRENT_LIST_DIR}/hybridattn-targets.cmake")

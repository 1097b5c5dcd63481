// The library's version: the one place where it is written; CMake and the wheel read it from here.
#pragma once

#define HYBRIDATTN_VERSION_MAJOR 0
#define HYBRIDATTN_VERSION_MINOR 1
#define HYBRIDATTN_VERSION_PATCH 0

namespace hybridattn {

/// Version as "major.minor.patch".
#define HYBRIDATTN_DETAIL_QUOTE_(x) #x
#define HYBRIDATTN_DETAIL_QUOTE(x) HYBRIDATTN_DETAIL_QUOTE_(x)
inline constexpr char version[] = HYBRIDATTN_DETAIL_QUOTE(HYBRIDATTN_VERSION_MAJOR) "." HYBRIDATTN_DETAIL_QUOTE(
    HYBRIDATTN_VERSION_MINOR) "." HYBRIDATTN_DETAIL_QUOTE(HYBRIDATTN_VERSION_PATCH);
#undef HYBRIDATTN_DETAIL_QUOTE
#undef HYBRIDATTN_DETAIL_QUOTE_

} // namespace hybridattn

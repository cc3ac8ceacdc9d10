// SPDX-License-Identifier: BSD-3-Clause
// Lets a library that a current g++ built load where glibc 2.28 and the libstdc++ of GCC 8 are, as manylinux_2_28 promises. It
// defines, for this library alone, what newer ones would be asked for. Linked into every library for Linux with
// glibc, which export nothing of it (no_exports.map).
#define _GLIBCXX_EXTERN_TEMPLATE 0  // instantiate here what newer headers expect in libstdc++

#include <new>
#include <sstream>

#include "common/oldest_version.h"

#if defined(__GLIBC__) && defined(__GLIBCXX__)

// ---- libstdc++ -------------------------------------------------------------------------------------------------

// Their default constructors are of GCC 9, and str() of temporary objects is of GCC 11.
template class std::basic_stringbuf<char>;
template class std::basic_stringstream<char>;
template class std::basic_ostringstream<char>;

// Of GCC 11. The allocators of its headers call it.
namespace std {
void __throw_bad_array_new_length() { throw bad_array_new_length(); }
}  // namespace std

// Of glibc 2.32. Reference counts ask it whether they may do without atomic operations: they may not, which is always right.
extern "C" {
char __libc_single_threaded = 0;
}

FS_USE_OLDEST("exp");    // of glibc 2.29
FS_USE_OLDEST("dlsym");  // of libdl, and since glibc 2.34 of libc; headers of torch from 2.14 on call it

#endif

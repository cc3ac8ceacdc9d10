// SPDX-License-Identifier: BSD-3-Clause
// FS_USE_OLDEST(name): calls of the C library's function `name` reach its oldest version. For the files old_runtime.cpp only.
#pragma once

#include <cstdlib>  // says which C library it is

#if defined(__GLIBC__) && defined(__x86_64__)
#define FS_OLDEST "GLIBC_2.2.5"
#define FS_JUMP_TO(name) "jmp " name "@PLT\n"
#elif defined(__GLIBC__) && defined(__aarch64__)
#define FS_OLDEST "GLIBC_2.17"
#define FS_JUMP_TO(name) "b " name "\n"
#endif

#if defined(FS_OLDEST)
// A hidden function of that name, which jumps there.
#define FS_USE_OLDEST_VERSION(name, version)                                                                 \
  asm(".symver oldest_" name ", " name "@" version "\n.text\n.globl " name "\n.hidden " name "\n.type " name \
      ", %function\n" name ":\n" FS_JUMP_TO("oldest_" name))
#define FS_USE_OLDEST(name) FS_USE_OLDEST_VERSION(name, FS_OLDEST)
#else
#define FS_USE_OLDEST_VERSION(name, version)
#define FS_USE_OLDEST(name)
#endif

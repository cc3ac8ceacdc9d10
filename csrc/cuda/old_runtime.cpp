// SPDX-License-Identifier: BSD-3-Clause
// What the CUDA runtime, linked statically, calls of libpthread, libdl and librt. Since glibc 2.34 these functions are of libc, in
// a version that older ones lack. See common/old_runtime.cpp.
#include "common/oldest_version.h"

FS_USE_OLDEST("dlclose");
FS_USE_OLDEST("dlerror");
FS_USE_OLDEST("dlopen");
FS_USE_OLDEST("dlvsym");
FS_USE_OLDEST("pthread_condattr_setpshared");
FS_USE_OLDEST("pthread_create");
FS_USE_OLDEST("pthread_detach");
FS_USE_OLDEST("pthread_getspecific");
FS_USE_OLDEST("pthread_join");
FS_USE_OLDEST("pthread_key_create");
FS_USE_OLDEST("pthread_key_delete");
FS_USE_OLDEST("pthread_kill");
FS_USE_OLDEST("pthread_mutex_trylock");
FS_USE_OLDEST("pthread_mutexattr_destroy");
FS_USE_OLDEST("pthread_mutexattr_init");
FS_USE_OLDEST("pthread_mutexattr_setpshared");
FS_USE_OLDEST("pthread_mutexattr_settype");
FS_USE_OLDEST("pthread_once");
FS_USE_OLDEST("pthread_rwlock_destroy");
FS_USE_OLDEST("pthread_rwlock_init");
FS_USE_OLDEST("pthread_rwlock_rdlock");
FS_USE_OLDEST("pthread_rwlock_timedrdlock");
FS_USE_OLDEST("pthread_rwlock_timedwrlock");
FS_USE_OLDEST("pthread_rwlock_tryrdlock");
FS_USE_OLDEST("pthread_rwlock_trywrlock");
FS_USE_OLDEST("pthread_rwlock_unlock");
FS_USE_OLDEST("pthread_rwlock_wrlock");
FS_USE_OLDEST("pthread_rwlockattr_destroy");
FS_USE_OLDEST("pthread_rwlockattr_init");
FS_USE_OLDEST("pthread_rwlockattr_setpshared");
FS_USE_OLDEST("pthread_setspecific");
FS_USE_OLDEST("pthread_spin_destroy");
FS_USE_OLDEST("pthread_spin_init");
FS_USE_OLDEST("pthread_spin_lock");
FS_USE_OLDEST("pthread_spin_trylock");
FS_USE_OLDEST("pthread_spin_unlock");
FS_USE_OLDEST("sem_destroy");
FS_USE_OLDEST("sem_init");
FS_USE_OLDEST("sem_post");
FS_USE_OLDEST("sem_timedwait");
FS_USE_OLDEST("sem_trywait");
FS_USE_OLDEST("sem_wait");
FS_USE_OLDEST("shm_open");
FS_USE_OLDEST("shm_unlink");
#if defined(__x86_64__)
FS_USE_OLDEST_VERSION("dlmopen", "GLIBC_2.3.4");
#else
FS_USE_OLDEST("dlmopen");
#endif

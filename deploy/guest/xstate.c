/*
 * Preloaded into User-Mode Linux on a processor with AMX: see uml.sh.
 *
 * Such a processor's extended state (XSAVE) is longer than the buffer that User-Mode Linux has for it. The host's kernel
 * cuts it short when it is read, but takes only all of it when it is written, so the guest's first process would panic.
 * Here the missing rest, which no program of a guest uses, is filled in from what the process has.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

long ptrace(enum __ptrace_request request, ...)
{
	static long (*next)(enum __ptrace_request, ...);
	/* User-Mode Linux traces its processes on one thread. */
	static char whole[1 << 16];
	struct iovec all = { whole, sizeof(whole) };
	struct iovec *given;
	va_list words;
	void *address, *data;
	pid_t pid;

	va_start(words, request);
	pid = va_arg(words, pid_t);
	address = va_arg(words, void *);
	data = va_arg(words, void *);
	va_end(words);
	if (!next)
		next = dlsym(RTLD_NEXT, "ptrace");
	if (request != PTRACE_SETREGSET || (intptr_t)address != NT_X86_XSTATE)
		return next(request, pid, address, data);
	given = data;
	if (next(PTRACE_GETREGSET, pid, address, &all) < 0)
		return -1;
	memcpy(whole, given->iov_base, given->iov_len < all.iov_len ? given->iov_len : all.iov_len);
	return next(request, pid, address, &all);
}

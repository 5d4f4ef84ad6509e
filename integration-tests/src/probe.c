/* Makes any system call, for the tests that check what a container may do. Fixture::add_probe compiles it.
 *
 * probe NUMBER ARGUMENT... [, NUMBER ARGUMENT...]
 *
 * NUMBER is the number of the system call. An ARGUMENT is a number, or a string whose address is passed.
 * A comma separates several calls. On x86_64, `probe iNUMBER [ARGUMENT]` makes a call as 32-bit programs
 * do. The exit status is the error of the last call, or 0. The program uses no C library, so that no
 * static one is needed. */

static long call(long n, long a, long b, long c, long d, long e, long f)
{
#if defined(__x86_64__)
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	__asm__ volatile("syscall" : "+a"(n) : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
	return n;
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = n, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d, x4 __asm__("x4") = e, x5 __asm__("x5") = f;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
#else
#error unknown way to make a system call on this architecture
#endif
}

#if defined(__x86_64__)
static long call_of_i386(long n, long a)
{
	__asm__ volatile("int $0x80" : "+a"(n) : "b"(a) : "r8", "r9", "r10", "r11", "memory");
	return n;
}

#define EXIT 60
__asm__(".globl _start\n_start: mov %rsp, %rdi\nand $-16, %rsp\ncall start");
#else
#define EXIT 93
__asm__(".globl _start\n_start: mov x0, sp\nbl start");
#endif

static long value(const char *text)
{
	int negative = *text == '-';
	const char *digit = text + negative;
	long number = 0;
	if (*digit < '0' || *digit > '9')
		return (long)text;
	while (*digit)
		number = 10 * number + (*digit++ - '0');
	return negative ? -number : number;
}

__attribute__((used)) void start(long *stack)
{
	const char **argv = (const char **)(stack + 1);
#if defined(__x86_64__)
	if (*stack > 1 && *argv[1] == 'i') {
		long answer = call_of_i386(value(argv[1] + 1), *stack > 2 ? value(argv[2]) : 0);
		call(EXIT, answer < 0 ? -answer : 0, 0, 0, 0, 0, 0);
	}
#endif
	long result = 0;
	for (long next = 1; next < *stack; next++) {
		long args[7] = {0};
		for (long i = 0; i < 7 && next < *stack && *argv[next] != ','; i++)
			args[i] = value(argv[next++]);
		result = call(args[0], args[1], args[2], args[3], args[4], args[5], args[6]);
	}
	/* The kernel returns errors as -4095 to -1. */
	call(EXIT, result < 0 && result > -4096 ? -result : 0, 0, 0, 0, 0, 0);
}

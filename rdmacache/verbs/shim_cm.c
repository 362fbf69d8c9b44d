//go:build linux && cgo && rdma

#define _GNU_SOURCE
#include "shim.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

/*
 * What is not acknowledged in 4.096 us << ACK_TIMEOUT (268 ms) is sent again, RETRIES
 * times: so a peer that is gone is noticed in some 2 s, or a few times that. 7 retries
 * would be for ever on some devices, 7 for a peer without a receive are by definition.
 */
enum { ACK_TIMEOUT = 16, RETRIES = 6 };

static int channel_new(struct rdma_event_channel **out)
{
	struct rdma_event_channel *channel = rdma_create_event_channel();

	if (!channel)
		return -errno;
	int flags = fcntl(channel->fd, F_GETFL);
	if (flags < 0 || fcntl(channel->fd, F_SETFL, flags | O_NONBLOCK) < 0) {
		int err = -errno;
		rdma_destroy_event_channel(channel);
		return err;
	}
	*out = channel;
	return 0;
}

int shim_id(struct rdma_cm_id **out)
{
	struct rdma_event_channel *channel;
	int err = channel_new(&channel);

	if (err)
		return err;
	if (rdma_create_id(channel, out, NULL, RDMA_PS_TCP)) {
		err = -errno;
		rdma_destroy_event_channel(channel);
		return err;
	}
	return 0;
}

void shim_id_destroy(struct rdma_cm_id *id)
{
	struct rdma_event_channel *channel = id->channel;

	/* Fails for a bad id only, which this is not. */
	(void)rdma_destroy_id(id);
	rdma_destroy_event_channel(channel);
}

static void to_sockaddr(const struct shim_address *from, struct sockaddr_storage *to)
{
	memset(to, 0, sizeof(*to));
	if (from->size == 4) {
		struct sockaddr_in *in = (struct sockaddr_in *)to;
		in->sin_family = AF_INET;
		in->sin_port = htons(from->port);
		memcpy(&in->sin_addr, from->ip, 4);
	} else {
		struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)to;
		in6->sin6_family = AF_INET6;
		in6->sin6_port = htons(from->port);
		in6->sin6_scope_id = from->scope;
		memcpy(&in6->sin6_addr, from->ip, 16);
	}
}

static void from_sockaddr(const struct sockaddr *from, struct shim_address *to)
{
	memset(to, 0, sizeof(*to));
	if (from->sa_family == AF_INET) {
		const struct sockaddr_in *in = (const struct sockaddr_in *)from;
		to->size = 4;
		to->port = ntohs(in->sin_port);
		memcpy(to->ip, &in->sin_addr, 4);
	} else if (from->sa_family == AF_INET6) {
		const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)from;
		to->size = 16;
		to->port = ntohs(in6->sin6_port);
		to->scope = in6->sin6_scope_id;
		memcpy(to->ip, &in6->sin6_addr, 16);
	}
}

int shim_resolve_address(struct rdma_cm_id *id, const struct shim_address *to,
			 int timeout_ms)
{
	struct sockaddr_storage sa;

	to_sockaddr(to, &sa);
	return rdma_resolve_addr(id, NULL, (struct sockaddr *)&sa, timeout_ms) ? -errno : 0;
}

int shim_resolve_route(struct rdma_cm_id *id, int timeout_ms)
{
	uint8_t timeout = ACK_TIMEOUT;

	/* Before the route is there, or it does not count. The kernel may be too old. */
	(void)rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &timeout,
			      sizeof(timeout));
	return rdma_resolve_route(id, timeout_ms) ? -errno : 0;
}

int shim_listen(struct rdma_cm_id *id, const struct shim_address *at, int backlog)
{
	struct sockaddr_storage sa;

	to_sockaddr(at, &sa);
	if (rdma_bind_addr(id, (struct sockaddr *)&sa) || rdma_listen(id, backlog))
		return -errno;
	return 0;
}

/* As many READs and FLUSHes at once as both devices can. */
static struct rdma_conn_param params(const void *private_data, uint8_t size)
{
	return (struct rdma_conn_param){
		.private_data = private_data,
		.private_data_len = size,
		.responder_resources = RDMA_MAX_RESP_RES,
		.initiator_depth = RDMA_MAX_INIT_DEPTH,
		.flow_control = 1,
		.retry_count = RETRIES,
		.rnr_retry_count = RETRIES,
	};
}

int shim_connect(struct rdma_cm_id *id, const void *private_data, uint8_t size)
{
	struct rdma_conn_param p = params(private_data, size);

	return rdma_connect(id, &p) ? -errno : 0;
}

int shim_accept(struct rdma_cm_id *id, const void *private_data, uint8_t size)
{
	struct rdma_conn_param p = params(private_data, size);

	return rdma_accept(id, &p) ? -errno : 0;
}

int shim_reject(struct rdma_cm_id *id, const void *private_data, uint8_t size)
{
	return rdma_reject(id, private_data, size) ? -errno : 0;
}

void shim_local(struct rdma_cm_id *id, struct shim_address *out)
{
	from_sockaddr(rdma_get_local_addr(id), out);
}

void shim_peer(struct rdma_cm_id *id, struct shim_address *out)
{
	from_sockaddr(rdma_get_peer_addr(id), out);
}

/* Gives a peer that asks an event channel of its own; one that cannot have it is gone. */
static struct rdma_cm_id *adopt(struct rdma_cm_id *id)
{
	struct rdma_event_channel *channel;

	if (channel_new(&channel)) {
		(void)rdma_destroy_id(id);
		return NULL;
	}
	if (rdma_migrate_id(id, channel)) {
		(void)rdma_destroy_id(id);
		rdma_destroy_event_channel(channel);
		return NULL;
	}
	return id;
}

int shim_event(struct rdma_event_channel *channel, struct shim_event *out)
{
	struct rdma_cm_event *ev;

	if (rdma_get_cm_event(channel, &ev))
		return errno == EAGAIN ? 0 : -errno;
	struct rdma_cm_id *id = ev->id;
	uint32_t size = ev->param.conn.private_data_len;

	if (!ev->param.conn.private_data)
		size = 0;
	if (size > sizeof(out->private_data))
		size = sizeof(out->private_data);
	out->id = NULL;
	out->event = (int32_t)ev->event;
	out->status = ev->status;
	out->private_size = size;
	if (size)
		memcpy(out->private_data, ev->param.conn.private_data, size);
	/* Whoever destroys or migrates an id waits for its events. */
	(void)rdma_ack_cm_event(ev);

	if (out->event == RDMA_CM_EVENT_CONNECT_REQUEST)
		out->id = adopt(id);
	if (out->event == RDMA_CM_EVENT_DISCONNECTED)
		(void)rdma_disconnect(id);	/* flushes what is posted */
	return 1;
}

#define _GNU_SOURCE
#include <errno.h>
#include <string.h>

#include "rpmemfs.h"

const char *rpmemfs_strerror(int error)
{
	const char *text;

	switch (-error) {
	case 0:
		return "no error";
	case EOWNERDEAD:
		return "another program died: memory is back at the last "
		       "committed epoch";
	case EIO:
		return "the daemon is gone, or the file is poisoned: mount "
		       "again";
	case EOPNOTSUPP:
		return "not on an rpmemfs mount that programs can attach to";
	case EEXIST:
		return "the address where the region has to be is taken";
	case ETIMEDOUT:
		return "not in time: a thread came to no restart point, or the "
		       "daemon did not answer";
	case EPROTO:
		return "the daemon or the file is of another version";
	case ENOSPC:
		return "the pool is full";
	}
	text = strerrordesc_np(-error);
	return text ? text : "unknown error";
}

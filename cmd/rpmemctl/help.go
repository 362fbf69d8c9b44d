package main

import "github.com/spf13/cobra"

// helpTopics are pages of `rpmemctl help` that are no commands.
func helpTopics() []*cobra.Command {
	return []*cobra.Command{
		{Use: "exit-codes", Short: "what the exit codes mean", Long: exitCodesHelp},
		{Use: "json", Short: "the fields of --json", Long: jsonHelp},
		{Use: "paths", Short: "how files are named", Long: pathsHelp},
	}
}

const exitCodesHelp = `  0  all went well; check found the pool sound
  1  the command failed; check found damage
  2  the command was called in a wrong way; check could not check

Errors go to standard error, also under --json.`

const pathsHelp = `Without --pool a path is one in an rpmemfs mount. The daemon that serves it is found
through the extended attribute user.rpmemfs.socket of the path, and the file's
number through user.rpmemfs.ino; nothing needs to be configured.

With --pool DIR a path starts at the top of the pool, with or without a slash. The
pool is opened by rpmemctl itself, so no daemon may have it mounted.

Where a command takes FILE@CHECKPOINT, the part after the last @ is a checkpoint's
name or its epoch, unless a file of the whole name exists.`

const jsonHelp = `With --json every command prints one JSON object. Fields keep their names and
meanings; new ones may be added. Sizes are bytes, a page is 4096 bytes, times are
RFC 3339 in UTC. Fields marked * are left out where they do not apply.

A file (stat; create, clone and import print the new file; ls prints
{"path", "files": [...]}):
  path, name*, ino, type ("file", "dir", "symlink", "other"), mode, uid, gid, nlink
  size*, pages*        bytes; pages that exist, the rest are holes
  size_changed*        in the open epoch
  granted_bytes*, spare_bytes*
                       of the pool to this file; of those, not in use
  epoch*               last committed
  dirty_pages*         pages of the open epoch, the sum of the next two
  dirty_mapped_pages*  stored through mappings
  dirty_written_pages* written by write(2)
  checkpoints*, handles*, on_close* ("rollback", "commit")
  attached*            programs that capture what they store, see librpmemfs
  mtime
  poisoned*, error*    why the file takes no commits; why it could not be read

checkpoint   path, epoch, name*; with --all: path, files; with --quiesce stop also
             pages, processes, threads, pause_ns
checkpoints  path, checkpoints: [{name, epoch, time, size, mtime}]
checkpoints rm, rm
             removed: [names]
rollback     path, pages, epoch
refresh      files: [{path, epoch*}]; epoch is that which a file shows now
restore      path, checkpoint, epoch, saved_as*
export       path, checkpoint*, image, size, data_bytes
check        ok, files, pages, checkpoints, found, problems: [{ino, path*, text}];
             found counts all, problems lists the first thousand
heap check   path, checkpoint*, ok, in_use (programs may be changing it), size,
             live_blocks, live_bytes, found, problems: [{offset, text}]
heap stat    path, checkpoint*, size, base, guards, root, top (nothing was ever used
             from here on), live_blocks, live_bytes, caches, cached_bytes (free blocks
             in caches), idle_bytes (other free blocks of spans), free_bytes (units),
             unused_bytes (chunks), metadata_bytes, longest_free (bytes), fragmentation
             (0 to 1), classes: [{block_size, spans, live, cached, free}], large and
             huge: {blocks, bytes}, epoch*, dirty_pages*, handles*, found
status       pools: [{pool, mountpoint, pid, version, owner_uid, started, medium,
             volatile, read_only, generation, size_bytes, free_bytes, inodes, open_files,
             open_handles, dirty_pages, poisoned_files, on_close, commits,
             rollbacks, rolled_back_pages, failed_closes, pages_committed,
             bytes_committed, pages_unchanged (that arrived but equal what was there),
             medium_bytes_written, medium_flushes, transport* (to a memory node), lease*: {share, lasts_ns, lost*
             (why)}, error*}]; what counts does so since the daemon's start, the medium's without the directory
share ls     shares: [{name, ino, quota_bytes*, used_bytes, names_bytes*,
             names_quota_bytes*, lease*}]
share make, share quota
             name, quota_bytes (0: none)
lease ls     leases: [{share, session, holder, identity* (in its certificate), generation,
             granted, lease (how long it lasts, ns), keep_alive_age (ns)}]
lease end    share, ended
pki init, pki issue, pki show
             certificates: [{path, name, use ("authority", "server", "client", "other"),
             hosts*, shares*, shares_ro* (beside the share of its name), all*,
             not_before, not_after, serial, expired, error*}]
doctor       ok (nothing to fix), findings: [{area, level ("ok", "note", "fix"), what, do*}]
version      version, go, platform`

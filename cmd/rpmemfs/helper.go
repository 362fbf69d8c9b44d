package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// helperName is how mount(8) calls the helper of `mount -t fuse.rpmemfs`.
const helperName = "mount.fuse.rpmemfs"

// mountHelper is the main of the helper: SOURCE TARGET [-sfnv] [-o options]
// [-t type], as mount(8) documents it. It returns mount(8)'s exit codes.
func mountHelper(args []string) int {
	o, fake, err := parseHelperArgs(args)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", helperName, err)
		return 1
	}
	if fake {
		return 0
	}
	if err := startBackgroundArgs(o.args()); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", helperName, err)
		return 32
	}
	return 0
}

func parseHelperArgs(args []string) (o options, fake bool, err error) {
	var names []string
	var sloppy bool
	var lists []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if !strings.HasPrefix(arg, "-") || arg == "-" {
			names = append(names, arg)
			continue
		}
		for j, c := range arg[1:] {
			switch c {
			case 's':
				sloppy = true
				continue
			case 'f':
				fake = true
				continue
			case 'n', 'v', 'r', 'w':
				o.readOnly = o.readOnly || c == 'r'
				continue
			case 'o', 't', 'N':
			default:
				return o, false, fmt.Errorf("unknown option -%c", c)
			}
			value := arg[1+j+1:]
			if value == "" {
				if i++; i == len(args) {
					return o, false, fmt.Errorf("option -%c needs a value", c)
				}
				value = args[i]
			}
			if c == 'o' {
				lists = append(lists, value)
			}
			break
		}
	}
	if len(names) != 2 {
		return o, false, fmt.Errorf("want POOL MOUNTPOINT [-o options], got %d names", len(names))
	}
	o.pool, o.mountpoint = names[0], names[1]
	for _, opt := range strings.Split(strings.Join(lists, ","), ",") {
		if err := o.setMountOption(opt, sloppy); err != nil {
			return o, false, err
		}
	}
	return o, fake, nil
}

// genericOptions are those of fstab that mean nothing to this file system, or
// that mount(8) has dealt with.
var genericOptions = map[string]bool{
	"": true, "defaults": true, "auto": true, "noauto": true, "nofail": true, "_netdev": true,
	"user": true, "nouser": true, "users": true, "owner": true, "group": true,
	"rw": true, "nosuid": true, "nodev": true, "exec": true, "async": true,
	"atime": true, "noatime": true, "relatime": true, "norelatime": true, "strictatime": true,
	"nostrictatime": true, "lazytime": true, "nolazytime": true, "diratime": true, "nodiratime": true,
	"default_permissions": true,
}

func (o *options) setMountOption(opt string, sloppy bool) error {
	key, value, _ := strings.Cut(opt, "=")
	switch key {
	case "ro":
		o.readOnly = true
	case "noexec":
		o.noExec = true
	case "allow_other":
		o.allowOther = true
	case "size":
		return o.size.Set(value)
	case "device":
		o.device = value
	case "queue_pairs", "queue-pairs":
		n, err := strconv.Atoi(value)
		o.queuePairs = n
		return err
	case "overlay":
		return o.overlay.Set(value)
	case "cache":
		return o.cache.Set(value)
	case "on_close", "on-close":
		return o.onClose.Set(value)
	case "epoch":
		return setDuration(&o.epochs.interval, value)
	case "quiesce":
		return o.epochs.quiesce.Set(value)
	case "pki":
		o.tls.Pki = value
	case "cert":
		o.tls.Cert = value
	case "key":
		o.tls.Key = value
	case "ca":
		o.tls.CA = value
	case "metrics":
		o.metrics = value
	case "insecure":
		o.tls.Insecure = true
	case "steal":
		o.steal = true
	case "wait":
		return setDuration(&o.wait, value)
	case "lease":
		return setDuration(&o.lease, value)
	case "patience":
		return setDuration(&o.patience, value)
	case "heartbeat":
		return setDuration(&o.heartbeat, value)
	case "follow":
		return setDuration(&o.follow, value)
	case "control":
		o.control = value
	case "log_file":
		o.logFile = value
	case "log_level":
		return o.logLevel.UnmarshalText([]byte(value))
	default:
		if genericOptions[key] || sloppy || strings.HasPrefix(key, "x-") || strings.HasPrefix(key, "X-") || key == "comment" {
			return nil
		}
		return fmt.Errorf("unknown mount option %q", opt)
	}
	return nil
}

func setDuration(to *time.Duration, value string) (err error) {
	*to, err = time.ParseDuration(value)
	return err
}

// args is the command line that asks `rpmemfs` for the same mount.
func (o *options) args() []string {
	args := []string{"mount", "--pool=" + o.pool, "--on-close=" + o.onClose.String(), "--log-level=" + o.logLevel.String()}
	if o.size != 0 {
		args = append(args, fmt.Sprintf("--size=%dB", uint64(o.size)))
	}
	if o.overlay != 0 {
		args = append(args, fmt.Sprintf("--overlay=%dB", uint64(o.overlay)))
	}
	if o.cache.set {
		args = append(args, fmt.Sprintf("--cache=%dB", uint64(o.cache.byteSize)))
	}
	args = append(args, o.epochs.args()...)
	for _, flag := range []struct{ name, value string }{
		{"pki", o.tls.Pki}, {"cert", o.tls.Cert}, {"key", o.tls.Key}, {"ca", o.tls.CA}, {"metrics", o.metrics},
		{"device", o.device},
	} {
		if flag.value != "" {
			args = append(args, "--"+flag.name+"="+flag.value)
		}
	}
	if o.wait != 0 {
		args = append(args, "--wait="+o.wait.String())
	}
	if o.lease != 0 {
		args = append(args, "--lease="+o.lease.String())
	}
	if o.patience != 0 {
		args = append(args, "--patience="+o.patience.String())
	}
	if o.heartbeat != 0 {
		args = append(args, "--heartbeat="+o.heartbeat.String())
	}
	if o.queuePairs != 0 {
		args = append(args, "--queue-pairs="+strconv.Itoa(o.queuePairs))
	}
	if o.follow != 0 {
		args = append(args, "--follow="+o.follow.String())
	}
	if o.control != "" {
		args = append(args, "--control="+o.control)
	}
	if o.logFile != "" {
		args = append(args, "--log-file="+o.logFile)
	}
	for name, set := range map[string]bool{"--allow-other": o.allowOther, "--read-only": o.readOnly, "--no-exec": o.noExec, "--steal": o.steal, "--insecure": o.tls.Insecure} {
		if set {
			args = append(args, name)
		}
	}
	return append(args, "--", o.mountpoint)
}

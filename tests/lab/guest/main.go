// Command guest is the first process of a guest of the lab: it sets the machine up and
// then starts processes as the lab asks.
//
//	/init nvdimm MODE	give the NVDIMM another mode: devdax or fsdax
package main

import (
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// path is where programs are looked for; busybox fills what Debian's leave out.
const path = "/usr/sbin:/usr/bin:/lab:/busybox"

func main() {
	if len(os.Args) == 3 && os.Args[1] == "nvdimm" {
		if err := nvdimm(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "nvdimm:", err)
			os.Exit(1)
		}
		return
	}
	if os.Getpid() != 1 {
		serve()
		return
	}
	if err := os.Setenv("PATH", path); err != nil {
		fatal(err)
	}
	if err := setUp(); err != nil {
		fatal(err)
	}
	reap()
}

// reap starts the agent and waits for every process that ends, as the first process of
// a machine has to. When the agent ends the machine does.
func reap() {
	agent := exec.Command("/init")
	agent.Stdout, agent.Stderr = os.Stdout, os.Stderr
	if err := agent.Start(); err != nil {
		fatal(err)
	}
	for {
		pid, err := unix.Wait4(-1, nil, 0, nil)
		if pid == agent.Process.Pid || err != nil && err != unix.EINTR {
			powerOff()
		}
	}
}

// fatal reports on the console why there is no guest, and ends it.
func fatal(err error) {
	fmt.Println("guest:", err)
	powerOff()
}

func powerOff() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) // does not return
	select {}
}

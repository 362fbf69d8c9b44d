// Package machine runs emulated machines (QEMU, without hardware acceleration) and
// processes in them.
//
// A machine boots an image of package image whose /init is the program in ../guest. What
// it has beyond a processor and memory is a network card at a Hub, an NVDIMM and a disk,
// each if asked for. NVDIMM and disk are files, which outlive the machine: Kill takes
// the power away, and another machine may start with the same files.
package machine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"github.com/rpmemfs/rpmemfs/tests/lab/wire"
)

// QEMU is an unpacked tree of packages with QEMU in it. It runs with the libraries of
// the tree, whatever those of the host are.
type QEMU struct{ Root string }

func (q QEMU) command(args ...string) *exec.Cmd {
	usr := filepath.Join(q.Root, "usr")
	lib := filepath.Join(usr, "lib/x86_64-linux-gnu")
	start := []string{
		"--library-path", lib, filepath.Join(usr, "bin/qemu-system-x86_64"),
		"-L", filepath.Join(usr, "share/qemu"), "-L", filepath.Join(usr, "share/seabios"),
	}
	return exec.Command(filepath.Join(usr, "lib64/ld-linux-x86-64.so.2"), append(start, args...)...)
}

// Config says what a machine is. The zero value of a field stands for "none".
type Config struct {
	Name   string
	QEMU   QEMU
	Kernel string
	Initrd string
	Dir    string // for sockets; exists

	Address string // of the network card, as 10.0.0.1/24
	Card    int    // distinguishes the card from others on the hub
	Hub     string // path of the socket of the network; "": the card leads nowhere

	NVDIMM     string // file behind it; its size is a multiple of 2 MiB
	NVDIMMMode string // devdax or fsdax
	Disk       string // file behind /dev/vda

	Memory int // MiB
	TSC    int // ticks of the host's time stamp counter in a millisecond
}

// A Machine is a running guest.
type Machine struct {
	Name   string
	Uptime float64 // seconds of the guest's own time until it was ready

	cmd     *exec.Cmd
	port    net.Conn
	console console
	exited  chan struct{} // closed when QEMU has ended
	sendMu  sync.Mutex

	mu        sync.Mutex
	processes map[int]*Process
	lastID    int
	gone      bool // no reply comes any more
}

// A console collects what a guest prints.
type console struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.Write(p)
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.String()
}

// Start boots a machine and returns when it takes commands.
func Start(ctx context.Context, cfg Config) (*Machine, error) {
	socket := filepath.Join(cfg.Dir, cfg.Name+".port")
	_ = os.Remove(socket) // of a machine before
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	// It is closed when the machine has ended, and the next one of its name may be there by then.
	listener.SetUnlinkOnClose(false)
	m := &Machine{Name: cfg.Name, exited: make(chan struct{}), processes: map[int]*Process{}}
	m.cmd = cfg.QEMU.command(arguments(cfg, socket)...)
	m.cmd.Stdout, m.cmd.Stderr = &m.console, &m.console
	if err := m.run(); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	go func() {
		<-m.exited
		_ = listener.Close() // nobody will come
	}()
	err = m.greet(listener)
	if err != nil {
		m.Kill()
		return nil, fmt.Errorf("start machine %s: %w; its console:\n%s", cfg.Name, err, m.Console())
	}
	return m, nil
}

// greet waits for the guest's first reply.
func (m *Machine) greet(listener net.Listener) error {
	conn, err := listener.Accept()
	if err != nil {
		return err
	}
	m.port = conn
	ready := make(chan float64, 1)
	go m.receive(ready)
	select {
	case m.Uptime = <-ready:
		return nil
	case <-m.exited:
		return errors.New("QEMU ended")
	}
}

// run starts QEMU, in a process group of its own. It dies with this process: the kernel
// sees to that as long as the thread lives that started it.
func (m *Machine) run() error {
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := m.cmd.Start()
		started <- err
		if err == nil {
			_ = m.cmd.Wait() // how it ended shows at the console
			close(m.exited)
		}
	}()
	return <-started
}

func arguments(cfg Config, socket string) []string {
	kernel := []string{
		"console=ttyS0", "quiet", "panic=-1", "mitigations=off", "nokaslr", "no_timer_check",
		// The first is a test of the random number generator, the others are certificates.
		"initcall_blacklist=jent_mod_init,load_system_certificate_list,load_revocation_certificate_list",
		"tsc=reliable", fmt.Sprintf("tsc_early_khz=%d", cfg.TSC), // see ../c/tsc.c
		"random.trust_cpu=on", "audit=0", "apparmor=0", "selinux=0", "cryptomgr.notests", "net.ifnames=0",
		wire.ArgName + cfg.Name,
	}
	if cfg.Address != "" {
		kernel = append(kernel, wire.ArgAddress+cfg.Address)
	}
	chipset, memory := "q35", fmt.Sprint(cfg.Memory)
	var devices []string
	if cfg.NVDIMM != "" {
		chipset, memory = "q35,nvdimm=on", memory+",slots=2,maxmem=4G"
		kernel = append(kernel, wire.ArgNVDIMM+cfg.NVDIMMMode)
		devices = append(devices,
			"-object", fmt.Sprintf("memory-backend-file,id=nvdimm,share=on,mem-path=%s,size=%d", cfg.NVDIMM, fileSize(cfg.NVDIMM)),
			"-device", "nvdimm,memdev=nvdimm")
	}
	if cfg.Disk != "" {
		devices = append(devices, "-drive", "if=virtio,format=raw,file="+cfg.Disk)
	}
	if cfg.Hub != "" {
		devices = append(devices,
			"-netdev", "stream,id=net,server=off,addr.type=unix,addr.path="+cfg.Hub,
			"-device", fmt.Sprintf("virtio-net-pci,netdev=net,mac=%v,romfile=", cardOf(cfg.Card)))
	}
	return append([]string{
		"-accel", "tcg,thread=multi,tb-size=128", "-cpu", "max,la57=off", "-smp", "1", "-machine", chipset, "-m", memory,
		"-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot",
		"-kernel", cfg.Kernel, "-initrd", cfg.Initrd, "-append", strings.Join(kernel, " "),
		"-chardev", "socket,id=port,server=off,path=" + socket,
		"-device", "virtio-serial-pci", "-device", "virtserialport,chardev=port,name=lab",
	}, devices...)
}

func fileSize(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0 // QEMU will say so
	}
	return st.Size()
}

// Console returns what the guest has printed so far.
func (m *Machine) Console() string { return m.console.String() }

// Kill takes the power away: what is not on the NVDIMM or the disk is lost.
func (m *Machine) Kill() {
	_ = syscall.Kill(-m.cmd.Process.Pid, syscall.SIGKILL) // it may have ended
	<-m.exited
}

// Pause stops the machine's processor and devices between two instructions, and Resume
// lets them go on: for the guest no time has passed, though its clock jumps.
func (m *Machine) Pause() error { return syscall.Kill(-m.cmd.Process.Pid, syscall.SIGSTOP) }

// Resume ends Pause.
func (m *Machine) Resume() error { return syscall.Kill(-m.cmd.Process.Pid, syscall.SIGCONT) }

// PowerOff ends the guest in order, and kills it if it has not ended when ctx is done.
func (m *Machine) PowerOff(ctx context.Context) error {
	err := m.send(wire.Request{PowerOff: true})
	select {
	case <-m.exited:
		return err
	case <-ctx.Done():
		m.Kill()
		return errors.Join(err, fmt.Errorf("power off %s: %w", m.Name, ctx.Err()))
	}
}

// receive hands replies to the processes that they are about.
func (m *Machine) receive(ready chan<- float64) {
	replies := json.NewDecoder(m.port)
	for {
		var r wire.Reply
		if err := replies.Decode(&r); err != nil {
			m.lose()
			_ = m.port.Close() // nothing more is said on it
			return
		}
		if r.Ready {
			ready <- r.Uptime
			continue
		}
		m.mu.Lock()
		p := m.processes[r.ID]
		if r.Exited || r.Failed != "" {
			delete(m.processes, r.ID)
		}
		m.mu.Unlock()
		if p != nil {
			p.take(r)
		}
	}
}

// lose ends all processes: the machine is gone.
func (m *Machine) lose() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gone = true
	for _, p := range m.processes {
		p.take(wire.Reply{Failed: "machine " + m.Name + " is gone"})
	}
	clear(m.processes)
}

func (m *Machine) send(q wire.Request) error {
	m.sendMu.Lock()
	defer m.sendMu.Unlock()
	if err := json.NewEncoder(m.port).Encode(q); err != nil {
		return fmt.Errorf("machine %s: %w", m.Name, err)
	}
	return nil
}

package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	nvdimmDevices = "/sys/bus/nd/devices"
	nvdimmDrivers = "/sys/bus/nd/drivers"
)

// nvdimm puts the namespace of the NVDIMM into a mode: devdax makes /dev/dax0.0, fsdax a
// /dev/pmem0 that file systems can map directly. A namespace that is in the mode already,
// since the kernel found it so on the medium, keeps its content. It does by sysfs what
// `ndctl create-namespace --force --reconfig namespace0.0 --mode MODE` does; see the
// kernel's Documentation/driver-api/nvdimm/nvdimm.rst.
func nvdimm(mode string) error {
	device, driver, kind := "/dev/dax0.0", "dax_pmem", "dax"
	if mode == "fsdax" {
		device, driver, kind = "/dev/pmem0", "nd_pmem", "pfn"
	}
	bound, err := filepath.Glob(filepath.Join(nvdimmDrivers, driver, kind+"*"))
	if err != nil {
		return err
	}
	if _, err := os.Stat(device); err == nil && len(bound) > 0 {
		return nil
	}
	if err := releaseNamespace(); err != nil {
		return err
	}
	seed, err := os.ReadFile(filepath.Join(nvdimmDevices, "region0", kind+"_seed"))
	if err != nil {
		return err
	}
	name := strings.TrimSpace(string(seed))
	for _, set := range []struct{ file, value string }{
		{"uuid", newUUID()}, {"mode", "ram"}, {"align", "2097152"}, {"namespace", "namespace0.0"},
	} {
		if err := write(filepath.Join(nvdimmDevices, name, set.file), set.value); err != nil {
			return err
		}
	}
	if err := write(filepath.Join(nvdimmDrivers, driver, "bind"), name); err != nil {
		return err
	}
	_, err = os.Stat(device)
	return err
}

// releaseNamespace takes the namespace from whoever has it.
func releaseNamespace() error {
	users, err := filepath.Glob(filepath.Join(nvdimmDevices, "[pd][fa][nx]*.*"))
	if err != nil {
		return err
	}
	for _, user := range users {
		err := write(filepath.Join(user, "driver/unbind"), filepath.Base(user))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = write(filepath.Join(user, "namespace"), "\n")
		}
		if err != nil {
			return err
		}
	}
	err = write(filepath.Join(nvdimmDevices, "namespace0.0/driver/unbind"), "namespace0.0")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func write(path, value string) error { return os.WriteFile(path, []byte(value), 0o644) }

func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

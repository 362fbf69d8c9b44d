package verbs

import "testing"

// fakeDevice is a device all of whose memory can be registered.
type fakeDevice struct{ domains, mrs int }

func (*fakeDevice) Name() string  { return "fake0" }
func (*fakeDevice) Flushes() bool { return false }

func (d *fakeDevice) NewDomain() (Domain, error) {
	d.domains++
	return fakeDomain{d}, nil
}

type fakeDomain struct{ d *fakeDevice }

func (x fakeDomain) Register([]byte, Access) (MR, error) {
	x.d.mrs++
	return fakeMR(x), nil
}

func (x fakeDomain) Close() error { x.d.domains--; return nil }

type fakeMR struct{ d *fakeDevice }

func (fakeMR) LKey() uint32    { return 1 }
func (fakeMR) RKey() uint32    { return 2 }
func (fakeMR) Address() uint64 { return 0 }
func (x fakeMR) Close() error  { x.d.mrs--; return nil }

// A device that was reset has its name, and nothing of what was made of it before.
func TestArenaOfResetDevice(t *testing.T) {
	a, err := newArena(minWindow)
	if err != nil {
		t.Fatal(err)
	}
	before, after := new(fakeDevice), new(fakeDevice)
	for _, d := range []*fakeDevice{before, before, after} {
		if err := a.register(d); err != nil {
			t.Fatal(err)
		}
	}
	if *before != (fakeDevice{}) || *after != (fakeDevice{1, 1}) {
		t.Errorf("the device before has %+v, the one after %+v; want nothing, and one of each", *before, *after)
	}
	if err := a.close(); err != nil || *after != (fakeDevice{}) {
		t.Errorf("close: %v, the device has %+v", err, *after)
	}
}

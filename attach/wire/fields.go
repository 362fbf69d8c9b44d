package wire

// The fields of each message in the order of its bytes.

func (m *Hello) fields(c *codec) {
	c.u64(&m.Ino)
	c.flags(&m.Flags)
	c.u32(&m.Frames)
	c.name(&m.Name)
}

func (m *Welcome) fields(c *codec) {
	c.errno(&m.Errno)
	c.u32(&m.Member)
	c.u64(&m.N)
	c.u64(&m.Epoch)
	c.u64(&m.Interval)
}

func (m *Request) fields(c *codec) {
	c.u64(&m.ID)
	c.u64(&m.Timeout)
}

func (m *Result) fields(c *codec) {
	c.u64(&m.ID)
	c.errno(&m.Errno)
	c.u32(&m.LateTID)
	c.u64(&m.Epoch)
}

func (m *Due) fields(c *codec) {
	c.u64(&m.N)
	c.u64(&m.Timeout)
}

func (m *Ready) fields(c *codec) { c.u64(&m.N) }

func (m *Late) fields(c *codec) {
	c.u64(&m.N)
	c.u32(&m.TID)
	c.zero()
	c.name(&m.Name)
}

func (m *Drain) fields(c *codec) { c.u64(&m.N) }

func (m *Drained) fields(c *codec) {
	c.u64(&m.N)
	c.errno(&m.Errno)
	c.zero()
}

func (m *Go) fields(c *codec) {
	c.u64(&m.N)
	c.bool(&m.Sole)
	c.pages(&m.Pages)
	c.u64(&m.Epoch)
}

func (m *Done) fields(c *codec) {
	c.u64(&m.N)
	c.u64(&m.Upto)
	c.errno(&m.Errno)
	c.u32(&m.Rounds)
	c.u64(&m.Precopied)
	c.u64(&m.Copied)
	c.u64(&m.ScanNs)
	c.u64(&m.CopyNs)
	c.u64(&m.PauseNs)
}

func (m *Release) fields(c *codec) {
	c.u64(&m.N)
	c.errno(&m.Errno)
	c.zero()
	c.u64(&m.Epoch)
}

func (m *Committed) fields(c *codec) { c.u64(&m.Epoch) }

func (m *Lost) fields(c *codec) {
	c.errno(&m.Errno)
	c.zero()
	c.u64(&m.Epoch)
}

func (m *Gone) fields(c *codec) {
	c.errno(&m.Errno)
	c.zero()
}

func (*Untracked) fields(*codec) {}
func (*Kick) fields(*codec)      {}
func (*Detach) fields(*codec)    {}

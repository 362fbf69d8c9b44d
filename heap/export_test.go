package heap

// AllocStale is AllocAligned without zeroing, as malloc is in C.
func (c *Cache) AllocStale(size, align uint64) (Offset, error) { return c.alloc(size, align, false) }

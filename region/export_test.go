package region

import "github.com/rpmemfs/rpmemfs/epoch"

// ForgedRecord returns a page that begins with a record such as a writer of the
// region would append for epoch e.
func ForgedRecord(id ID, e epoch.ID) []byte {
	r := record{kind: kindEpoch, id: id, generation: 1 << 40, epoch: e, durable: e - 1, size: 666, cut: 0}
	return append(r.encode(), make([]byte, PageSize)...)[:PageSize]
}

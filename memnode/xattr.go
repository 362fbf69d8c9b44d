package memnode

import (
	"bytes"
	"context"
	"errors"
	"strings"

	"github.com/rpmemfs/rpmemfs/namespace"
)

// maxXattrList is how many bytes the names of an inode's attributes take at
// most, each with a zero behind it, as on Linux.
const maxXattrList = 64 << 10

// Xattr returns the value of an extended attribute. The caller owns it.
func (d *directory) Xattr(ctx context.Context, ino namespace.Ino, name string) (value []byte, err error) {
	if err := checkXattrName(name); err != nil {
		return nil, err
	}
	err = d.view(ctx, func(t txn) error {
		if _, err := t.inode(ino); err != nil {
			return err
		}
		value, err = t.xattr(ino, name)
		return err
	})
	return value, err
}

// Xattrs returns the names of an inode's extended attributes, sorted.
func (d *directory) Xattrs(ctx context.Context, ino namespace.Ino) (names []string, err error) {
	err = d.view(ctx, func(t txn) error {
		if _, err := t.inode(ino); err != nil {
			return err
		}
		names, err = t.xattrs(ino)
		return err
	})
	return names, err
}

// SetXattr sets an extended attribute. ErrTooBig if the value, or all names
// together, would be longer than Linux allows.
func (d *directory) SetXattr(ctx context.Context, ino namespace.Ino, name string, value []byte, flags namespace.XattrFlags) error {
	if err := checkXattrName(name); err != nil {
		return err
	}
	switch {
	case flags&^(namespace.XattrCreate|namespace.XattrReplace) != 0, flags == namespace.XattrCreate|namespace.XattrReplace:
		return namespace.ErrInvalid
	case len(value) > namespace.MaxXattrValue:
		return namespace.ErrTooBig
	}
	return d.update(ctx, result{}, func(t txn) error {
		n, err := t.inode(ino)
		if err != nil {
			return err
		}
		old, err := t.xattr(ino, name)
		switch {
		case err == nil && flags == namespace.XattrCreate:
			return namespace.ErrExist
		case err == nil && bytes.Equal(old, value):
			return errUnchanged
		case errors.Is(err, namespace.ErrNoXattr) && flags != namespace.XattrReplace:
			if err := checkXattrRoom(t, ino, name); err != nil {
				return err
			}
		case err != nil:
			return err
		}
		if err := t.put(bucketXattrs, keyName(uint64(t.number(ino)), name), encodeXattr(value)); err != nil {
			return err
		}
		n.Ctime = d.pool.now().UnixNano()
		return t.putInode(&n)
	})
}

// RemoveXattr removes an extended attribute.
func (d *directory) RemoveXattr(ctx context.Context, ino namespace.Ino, name string) error {
	if err := checkXattrName(name); err != nil {
		return err
	}
	return d.update(ctx, result{}, func(t txn) error {
		n, err := t.inode(ino)
		if err != nil {
			return err
		}
		if _, err := t.xattr(ino, name); err != nil {
			return err
		}
		if err := t.delete(bucketXattrs, keyName(uint64(t.number(ino)), name)); err != nil {
			return err
		}
		n.Ctime = d.pool.now().UnixNano()
		return t.putInode(&n)
	})
}

// xattr returns a copy of the value, or ErrNoXattr. The caller has looked at ino.
func (t txn) xattr(ino namespace.Ino, name string) ([]byte, error) {
	key := keyName(uint64(t.number(ino)), name)
	body, err := t.get(bucketXattrs, key)
	if err != nil {
		return nil, err
	}
	if body == nil {
		return nil, namespace.ErrNoXattr
	}
	value, err := decodeXattr(body)
	if err != nil {
		return nil, corruptValue(bucketXattrs, key, err.Error())
	}
	return value, nil
}

func (t txn) xattrs(ino namespace.Ino) (names []string, err error) {
	err = t.each(bucketXattrs, key1(uint64(t.number(ino))), func(key, _ []byte) error {
		names = append(names, string(key[8:]))
		return nil
	})
	return names, err
}

func checkXattrRoom(t txn, ino namespace.Ino, name string) error {
	names, err := t.xattrs(ino)
	if err != nil {
		return err
	}
	size := len(name) + 1
	for _, other := range names {
		size += len(other) + 1
	}
	if size > maxXattrList {
		return namespace.ErrTooBig
	}
	return nil
}

func checkXattrName(name string) error {
	switch {
	case len(name) > namespace.MaxXattrName:
		return namespace.ErrNameTooLong
	case name == "" || strings.ContainsRune(name, 0):
		return namespace.ErrInvalid
	}
	return nil
}

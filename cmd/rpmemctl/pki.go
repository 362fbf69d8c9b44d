package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rpmemfs/rpmemfs/internal/pki"
)

func newPki(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pki",
		Short: "make certificates for memory and compute nodes",
		Long: `Make the certificates with which 'rpmemfs serve' and 'rpmemfs mount tcp://...' know each
other. DIR holds an authority: ca.crt and ca.key, and NAME.crt and NAME.key of each node.

A compute node gets ca.crt and its own pair, in a directory that --pki then names; the
memory node likewise. ca.key stays where it is: who has it can be anybody. A certificate
cannot be revoked, so give it a short life where that matters; to renew one, issue it
again with --force and copy the pair: daemons take it with their next connection.`,
		Example: `  rpmemctl pki init /etc/rpmemfs/pki
  rpmemctl pki issue /etc/rpmemfs/pki node1 --host node1.example --host 10.0.0.1
  rpmemctl pki issue /etc/rpmemfs/pki web7 --share common
  rpmemctl pki show /etc/rpmemfs/pki`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return usagef("name what to do: init, issue or show") },
	}
	cmd.AddCommand(newPkiInit(a), newPkiIssue(a), newPkiShow(a))
	return cmd
}

func newPkiInit(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "init DIR",
		Short: "make an authority",
		Long: `Make an authority that issues certificates for ten years. The directory is made too, closed
to others. An authority that exists is left alone.`,
		Example:           `  rpmemctl pki init /etc/rpmemfs/pki`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeDirs,
		RunE: func(_ *cobra.Command, args []string) error {
			if err := pki.Init(args[0]); err != nil {
				return err
			}
			return a.showCertificates(args[0], "made ")
		},
	}
}

func newPkiIssue(a *app) *cobra.Command {
	r, days := pki.Request{}, uint(365)
	var shares, readOnly []string
	cmd := &cobra.Command{
		Use:   "issue DIR NAME",
		Short: "make a node's certificate and key",
		Long: `Make NAME.crt and NAME.key with the authority in DIR. With --host it is a memory node's
certificate, for every name and address that others reach it by. Without, it is a compute
node's: it may open the share NAME, which is made when it comes first, those of --share
and --share-ro, or with --all every share and the whole pool, and do what operators do.`,
		Example: `  rpmemctl pki issue /etc/rpmemfs/pki node1 --host node1.example --host 10.0.0.1
  rpmemctl pki issue /etc/rpmemfs/pki web7 --share common --share-ro models --days 30
  rpmemctl pki issue /etc/rpmemfs/pki operator --all`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeDirs,
		RunE: func(_ *cobra.Command, args []string) error {
			if days == 0 || days > 36500 {
				return usagef("--days %d: want 1 to 36500", days)
			}
			r.Name, r.Valid = args[1], time.Duration(days)*24*time.Hour
			for _, name := range shares {
				r.Shares = append(r.Shares, pki.Grant{Share: name})
			}
			for _, name := range readOnly {
				r.Shares = append(r.Shares, pki.Grant{Share: name, ReadOnly: true})
			}
			return a.issue(args[0], r)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&r.Hosts, "host", nil, "a `name` or address of the memory node; may be given again")
	f.StringArrayVar(&shares, "share", nil, "a further `share` that it may open; may be given again")
	f.StringArrayVar(&readOnly, "share-ro", nil, "a `share` that it may open for reading; may be given again")
	f.BoolVar(&r.All, "all", false, "it may open every share and the whole pool, and is an operator")
	f.UintVar(&days, "days", days, "how long it is valid; at most as long as the authority")
	f.BoolVar(&r.Replace, "force", false, "replace a certificate of this name")
	return cmd
}

func (a *app) issue(dir string, r pki.Request) error {
	_, err := pki.Issue(dir, r)
	switch {
	case errors.Is(err, pki.ErrExist):
		return hinted(err, "'rpmemctl pki issue --force' replaces it.")
	case errors.Is(err, pki.ErrNone):
		return hinted(err, "Make an authority there first: rpmemctl pki init %s", shellQuote(dir))
	case err != nil:
		return err
	}
	return a.showCertificates(filepath.Join(dir, r.Name+".crt"), "made ")
}

func newPkiShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show DIR|FILE",
		Short: "show certificates: whose, what for, until when",
		Long: `Show a certificate, or all of a directory: whose it is, what it is for, which hosts or shares
it names, and when it ends. Exit code 1 if one cannot be read or has ended.`,
		Example: `  rpmemctl pki show /etc/rpmemfs/pki
  rpmemctl pki show /etc/rpmemfs/pki/web7.crt --json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeFiles,
		RunE:              func(_ *cobra.Command, args []string) error { return a.showCertificates(args[0], "") },
	}
}

type certificatesJSON struct {
	Certificates []certificateJSON `json:"certificates"`
}

type certificateJSON struct {
	Path      string   `json:"path"`
	Name      string   `json:"name"`
	Use       string   `json:"use"` // "authority", "server", "client", "other"
	Hosts     []string `json:"hosts,omitempty"`
	Shares    []string `json:"shares,omitempty"`
	SharesRO  []string `json:"shares_ro,omitempty"`
	All       bool     `json:"all,omitempty"`
	NotBefore string   `json:"not_before"`
	NotAfter  string   `json:"not_after"`
	Serial    string   `json:"serial"`
	Expired   bool     `json:"expired"`
	Error     string   `json:"error,omitempty"`

	notAfter time.Time
}

// showCertificates shows a certificate or those of a directory, after what was
// done to them.
func (a *app) showCertificates(path, done string) error {
	paths := []string{path}
	if fi, err := os.Stat(path); err != nil {
		return err
	} else if fi.IsDir() {
		entries, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		paths = nil
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".crt") {
				paths = append(paths, filepath.Join(path, e.Name()))
			}
		}
		if len(paths) == 0 {
			return fmt.Errorf("%s: no certificate in it", path)
		}
	}
	list, bad := certificatesJSON{}, 0
	for _, p := range paths {
		c := a.certificate(p)
		if c.Error != "" || c.Expired {
			bad++
		}
		list.Certificates = append(list.Certificates, c)
	}
	err := a.print(list, func(w io.Writer) {
		for i, c := range list.Certificates {
			if i > 0 {
				fmt.Fprintln(w)
			}
			a.printCertificate(w, done, c)
		}
	})
	if err == nil && bad > 0 {
		return &codeError{exitFailed, nil}
	}
	return err
}

// certificate describes the certificate of a file.
func (a *app) certificate(path string) certificateJSON {
	j := certificateJSON{Path: path}
	c, err := pki.ReadCertificate(path)
	if err != nil {
		j.Error = plain(err)
		return j
	}
	j.Name, j.Serial = c.Subject.CommonName, fmt.Sprintf("%x", c.SerialNumber)
	j.notAfter = c.NotAfter
	j.NotBefore, j.NotAfter = jsonTime(c.NotBefore.UnixNano()), jsonTime(c.NotAfter.UnixNano())
	j.Expired = a.now().After(c.NotAfter)
	j.Hosts = slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		j.Hosts = append(j.Hosts, ip.String())
	}
	switch {
	case c.IsCA:
		j.Use = "authority"
	case slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth):
		j.Use = "server"
	case slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth):
		j.Use = "client"
		id, err := pki.IdentityOf(c)
		if err != nil {
			j.Error = plain(err)
		}
		j.All = id.All
		for _, g := range id.Shares {
			if g.ReadOnly {
				j.SharesRO = append(j.SharesRO, g.Share)
			} else {
				j.Shares = append(j.Shares, g.Share)
			}
		}
	default:
		j.Use = "other"
	}
	return j
}

func (a *app) printCertificate(w io.Writer, done string, c certificateJSON) {
	if c.NotAfter == "" {
		fields(w, "certificate", clean(c.Path), "error", c.Error)
		return
	}
	opens := ""
	if c.Use == "client" && c.Error == "" {
		shares := []string{clean(c.Name)}
		for _, s := range c.Shares {
			shares = append(shares, clean(s))
		}
		for _, s := range c.SharesRO {
			shares = append(shares, clean(s)+" (read-only)")
		}
		if opens = strings.Join(shares, ", "); c.All {
			opens = "every share, as an operator"
		}
	}
	ends := a.time(c.notAfter.UnixNano())
	if c.Expired {
		ends += ", EXPIRED"
	}
	fields(w,
		done+"certificate", clean(c.Path),
		"name", clean(c.Name),
		"use", c.Use,
		"hosts", clean(strings.Join(c.Hosts, ", ")),
		"opens", opens,
		"valid until", ends,
		"serial", c.Serial,
		"error", c.Error,
	)
}

package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/rpmemfs/rpmemfs/node/nodepb"
)

func newLease(a *app) *cobra.Command {
	n := &nodeApp{app: a}
	cmd := &cobra.Command{
		Use:   "lease",
		Short: "see and end the leases of a memory node",
		Long: `See who may write to a memory node, and end it. A mount has the lease of its share, or of
the whole pool, and renews it all the time; one that does not for its whole time loses it.

These commands are for operators: with a certificate of 'rpmemctl pki issue --all'.`,
		Example: `  rpmemctl lease ls --node tcp://node1 --pki /etc/rpmemfs/pki/operator
  rpmemctl lease end web7 --node tcp://node1 --pki /etc/rpmemfs/pki/operator`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return usagef("name what to do: ls or end") },
	}
	n.addFlags(cmd)
	cmd.AddCommand(newLeaseLs(n), newLeaseEnd(n))
	return cmd
}

func newLeaseLs(n *nodeApp) *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "list leases: who holds them, since when",
		Long: `List the leases of a memory node: share, holder as it calls itself and as its certificate
does, since when, and when it was last heard.`,
		Example: `  rpmemctl lease ls --node tcp://node1 --pki /etc/rpmemfs/pki/operator --json`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			shares, err := n.shares(cmd.Context())
			if err != nil {
				return err
			}
			list := leasesJSON{Leases: []shareLeaseJSON{}}
			for _, s := range shares.Shares {
				if s.Lease != nil {
					list.Leases = append(list.Leases, *s.Lease)
				}
			}
			return n.print(list, func(w io.Writer) { n.printLeases(w, list.Leases) })
		},
	}
}

func newLeaseEnd(n *nodeApp) *cobra.Command {
	session := ""
	cmd := &cobra.Command{
		Use:   "end SHARE",
		Short: "end the lease of a share",
		Long: `End the lease of a share, or with / that of the whole pool, at once: its mount gets EIO for
everything and must be mounted again. What it committed stays, its open epochs are lost.`,
		Example: `  rpmemctl lease end web7 --node tcp://node1 --pki /etc/rpmemfs/pki/operator
  rpmemctl lease end web7 --session 6ff1c6d4a3b80e5f2b7c9d0e1f2a3b4c --node tcp://node1 --pki op`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := hex.DecodeString(session)
			if err != nil || session != "" && len(id) != nodepb.SessionSize {
				return usagef("--session %s: want %d hexadecimal digits, as 'lease ls' shows them", session, 2*nodepb.SessionSize)
			}
			return n.endLease(cmd.Context(), args[0], id)
		},
	}
	cmd.Flags().StringVar(&session, "session", "", "only if it is still of this session")
	return cmd
}

type leasesJSON struct {
	Leases []shareLeaseJSON `json:"leases"`
}

type shareLeaseJSON struct {
	Share        string `json:"share"`
	Session      string `json:"session"`
	Holder       string `json:"holder"`
	Identity     string `json:"identity,omitempty"`
	Generation   uint64 `json:"generation"`
	Granted      string `json:"granted"`
	Lease        uint64 `json:"lease"`
	KeepAliveAge uint64 `json:"keep_alive_age"`

	granted int64
}

type endedJSON struct {
	Share string `json:"share"`
	Ended bool   `json:"ended"`
}

// describeLease puts a share's lease into its JSON form; nil if it has none.
func describeLease(s *nodepb.Share) *shareLeaseJSON {
	l := s.GetLease()
	if l == nil {
		return nil
	}
	return &shareLeaseJSON{
		Share: s.GetName(), Session: hex.EncodeToString(l.GetSession()), Holder: l.GetHolder(), Identity: l.GetIdentity(),
		Generation: l.GetGeneration(), Granted: jsonTime(l.GetGranted()), Lease: l.GetLease(), KeepAliveAge: l.GetKeepAliveAge(),
		granted: l.GetGranted(),
	}
}

// who names the holder, both ways where they differ.
func (l *shareLeaseJSON) who() string {
	if l.Identity == "" {
		return clean(l.Holder)
	}
	return fmt.Sprintf("%s (%s)", clean(l.Holder), clean(l.Identity))
}

func (n *nodeApp) printLeases(w io.Writer, leases []shareLeaseJSON) {
	if len(leases) == 0 {
		fmt.Fprintln(w, "no leases")
		return
	}
	table(w, func(w io.Writer) {
		fmt.Fprintln(w, "SHARE\tHOLDER\tSINCE\tHEARD\tLASTS\tSESSION")
		for _, l := range leases {
			fmt.Fprintf(w, "%s\t%s\t%s\t%v ago\t%v\t%s\n", clean(l.Share), l.who(), n.time(l.granted),
				time.Duration(l.KeepAliveAge).Round(time.Millisecond), time.Duration(l.Lease), l.Session)
		}
	})
}

func (n *nodeApp) endLease(ctx context.Context, share string, session []byte) error {
	err := n.ask(ctx, func(ctx context.Context, c nodepb.NodeClient) error {
		_, err := c.EndSession(ctx, &nodepb.EndSessionRequest{Share: share, Session: session})
		return err
	})
	if err != nil {
		return fmt.Errorf("share %s: %w", share, err)
	}
	return n.print(endedJSON{share, true}, func(w io.Writer) {
		fmt.Fprintf(w, "%s: the lease is over\n", clean(share))
	})
}

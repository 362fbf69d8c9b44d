package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/rpmemfs/rpmemfs/namespace"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
)

func newShare(a *app) *cobra.Command {
	n := &nodeApp{app: a}
	cmd := &cobra.Command{
		Use:   "share",
		Short: "look after the shares of a memory node",
		Long: `Look after the shares of a memory node. A share is a directory at the top of its pool that
one compute node at a time mounts, and that sees nothing else of the pool. A quota bounds
the slots that its files are granted, another one its names and attributes in the pool's directory.

These commands are for operators: with a certificate of 'rpmemctl pki issue --all'.`,
		Example: `  rpmemctl share ls --node tcp://node1 --pki /etc/rpmemfs/pki/operator
  rpmemctl share make web7 --quota 10GiB --node tcp://node1 --pki /etc/rpmemfs/pki/operator`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return usagef("name what to do: ls, make or quota") },
	}
	n.addFlags(cmd)
	cmd.AddCommand(newShareLs(n), newShareMake(n), newShareQuota(n))
	return cmd
}

func newShareLs(n *nodeApp) *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "list shares: quota, use, and who has the lease",
		Long: `List the shares of a memory node, the whole pool first as /, with quota, use and the holder
of the lease.`,
		Example: `  rpmemctl share ls --node tcp://node1 --pki /etc/rpmemfs/pki/operator`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := n.shares(cmd.Context())
			if err != nil {
				return err
			}
			return n.print(list, func(w io.Writer) { printShares(w, list) })
		},
	}
}

func newShareMake(n *nodeApp) *cobra.Command {
	var quota, names sizeFlag
	cmd := &cobra.Command{
		Use:   "make NAME",
		Short: "make a share",
		Long: `Make an empty share. A compute node's own share, of the name in its certificate, is made when
it mounts for the first time; make it before to give it a quota at once.`,
		Example: `  rpmemctl share make web7 --quota 10GiB --node tcp://node1 --pki /etc/rpmemfs/pki/operator`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := n.changeShare(cmd.Context(), "made", args[0], uint64(quota), func(ctx context.Context, c nodepb.NodeClient) error {
				_, err := c.MakeShare(ctx, &nodepb.MakeShareRequest{Name: args[0], QuotaBytes: uint64(quota), NamesQuotaBytes: uint64(names)})
				return err
			})
			if errors.Is(err, namespace.ErrExist) {
				return hinted(err, "'rpmemctl share ls' shows it, and 'rpmemctl share quota %s SIZE' sets its quota.", shellQuote(args[0]))
			}
			return err
		},
	}
	cmd.Flags().Var(&quota, "quota", "how much its files may be granted, such as 10GiB; 0: no quota")
	cmd.Flags().Var(&names, "names", "how much its names, attributes and the like may take; 0: 1 GiB")
	return cmd
}

func newShareQuota(n *nodeApp) *cobra.Command {
	var names sizeFlag
	cmd := &cobra.Command{
		Use:   "quota NAME SIZE",
		Short: "set or lift the quota of a share",
		Long: `Set the quota of a share, 0 for none. One below what is in use takes nothing away; files get
no more until there is room again. A mount sees it at once.`,
		Example: `  rpmemctl share quota web7 20GiB --node tcp://node1 --pki /etc/rpmemfs/pki/operator`,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var quota sizeFlag
			if err := quota.Set(args[1]); err != nil {
				return usagef("quota %s: %w", args[1], err)
			}
			return n.changeShare(cmd.Context(), "changed", args[0], uint64(quota), func(ctx context.Context, c nodepb.NodeClient) error {
				_, err := c.SetQuota(ctx, &nodepb.SetQuotaRequest{Name: args[0], QuotaBytes: uint64(quota), NamesQuotaBytes: uint64(names)})
				return err
			})
		},
	}
	cmd.Flags().Var(&names, "names", "how much its names, attributes and the like may take; 0: as it is")
	return cmd
}

type sharesJSON struct {
	Shares []shareJSON `json:"shares"`
}

type shareJSON struct {
	Name       string          `json:"name"`
	Ino        uint64          `json:"ino"`
	QuotaBytes uint64          `json:"quota_bytes,omitempty"`
	UsedBytes  uint64          `json:"used_bytes"`
	Names      uint64          `json:"names_bytes,omitempty"`
	NamesQuota uint64          `json:"names_quota_bytes,omitempty"`
	Lease      *shareLeaseJSON `json:"lease,omitempty"`
}

type changedShareJSON struct {
	Name       string `json:"name"`
	QuotaBytes uint64 `json:"quota_bytes"`
}

func (n *nodeApp) shares(ctx context.Context) (*sharesJSON, error) {
	list := &sharesJSON{Shares: []shareJSON{}}
	err := n.ask(ctx, func(ctx context.Context, c nodepb.NodeClient) error {
		resp, err := c.Shares(ctx, &nodepb.SharesRequest{})
		for _, s := range resp.GetShares() {
			list.Shares = append(list.Shares, shareJSON{
				s.GetName(), s.GetIno(), s.GetQuotaBytes(), s.GetUsedBytes(), s.GetNamesBytes(), s.GetNamesQuotaBytes(), describeLease(s),
			})
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

func (n *nodeApp) changeShare(ctx context.Context, how, name string, quota uint64, call func(context.Context, nodepb.NodeClient) error) error {
	if name == nodepb.WholePool {
		return usagef("%s is the whole pool, which has no quota", name)
	}
	if err := n.ask(ctx, call); err != nil {
		return err // it names the share
	}
	return n.print(changedShareJSON{name, quota}, func(w io.Writer) {
		fmt.Fprintf(w, "%s share %s, %s\n", how, clean(name), quotaText(quota))
	})
}

func quotaText(bytes uint64) string {
	if bytes == 0 {
		return "no quota"
	}
	return "quota " + size(bytes)
}

func printShares(w io.Writer, list *sharesJSON) {
	table(w, func(w io.Writer) {
		fmt.Fprintln(w, "SHARE\tUSED\tQUOTA\tNAMES\tLEASE")
		for _, s := range list.Shares {
			quota, holder := "none", "free"
			if s.QuotaBytes > 0 {
				quota = size(s.QuotaBytes)
			}
			if s.Lease != nil {
				holder = s.Lease.who()
			}
			names := "-" // the whole pool has no bound of them
			if s.NamesQuota > 0 {
				names = size(s.Names) + " of " + size(s.NamesQuota)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", clean(s.Name), size(s.UsedBytes), quota, names, holder)
		}
	})
}

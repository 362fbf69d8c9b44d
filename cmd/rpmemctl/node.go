package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/rpmemfs/rpmemfs/internal/nodeurl"
	"github.com/rpmemfs/rpmemfs/internal/pki"
	"github.com/rpmemfs/rpmemfs/internal/rpcerr"
	"github.com/rpmemfs/rpmemfs/node/nodepb"
)

// A nodeApp is what the commands that ask a memory node share.
type nodeApp struct {
	*app
	address string
	pki     pki.Options
}

// addFlags adds the flags that say which memory node, and who asks, to all below
// cmd.
func (n *nodeApp) addFlags(cmd *cobra.Command) {
	f := cmd.PersistentFlags()
	f.StringVar(&n.address, "node", "", fmt.Sprintf("the memory node, tcp://HOST[:PORT] (default port %d)", nodeurl.DefaultPort))
	f.StringVar(&n.pki.Pki, "pki", "", pki.HelpPki)
	f.StringVar(&n.pki.Cert, "cert", "", pki.HelpCert)
	f.StringVar(&n.pki.Key, "key", "", pki.HelpKey)
	f.StringVar(&n.pki.CA, "ca", "", pki.HelpCA)
	f.BoolVar(&n.pki.Insecure, "insecure", false, pki.HelpInsecure)
	_ = cmd.MarkPersistentFlagRequired("node") // fails only for a flag that does not exist
}

// ask calls fn with a client of the memory node, within the time of one request.
func (n *nodeApp) ask(ctx context.Context, fn func(context.Context, nodepb.NodeClient) error) error {
	u, err := nodeurl.Parse(n.address)
	if err != nil {
		return usagef("%w", err)
	}
	if u.Share != "" {
		return usagef("--node %s: name the node only, without /%s", n.address, u.Share)
	}
	creds, err := n.credentials()
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("passthrough:///"+u.Address(),
		grpc.WithTransportCredentials(creds),
		grpc.WithNoProxy(),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: connectTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(nodepb.MaxResponseBytes)),
	)
	if err != nil {
		return err
	}
	ctx, cancel := n.request(ctx)
	defer cancel()
	err = nodeError(n.address, fn(ctx, nodepb.NewNodeClient(conn)))
	return errors.Join(err, conn.Close())
}

// connectTimeout bounds one try to reach the memory node.
const connectTimeout = 10 * time.Second

func (n *nodeApp) credentials() (credentials.TransportCredentials, error) {
	config, err := n.pki.ClientConfig()
	if err != nil {
		return nil, err
	}
	if config == nil {
		return insecure.NewCredentials(), nil
	}
	return credentials.NewTLS(config), nil
}

// nodeError explains the error of a call.
func nodeError(address string, err error) error {
	if err == nil {
		return nil
	}
	err = rpcerr.Pools.Decode(err)
	var e *rpcerr.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Code {
	case codes.Unavailable:
		return hinted(fmt.Errorf("%s does not answer: %w", address, err),
			"Is 'rpmemfs serve' running there, and do both ends use TLS, with certificates of one authority?")
	case codes.PermissionDenied, codes.Unauthenticated:
		return hinted(err, "Only operators may: use a certificate of 'rpmemctl pki issue DIR NAME --all'.")
	}
	return err
}

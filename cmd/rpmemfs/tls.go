package main

import (
	"github.com/spf13/cobra"

	"github.com/rpmemfs/rpmemfs/internal/pki"
)

// addTLSFlags adds the flags that say how this end of a connection shows who it is.
func addTLSFlags(cmd *cobra.Command, o *pki.Options) {
	f := cmd.Flags()
	f.StringVar(&o.Pki, "pki", "", pki.HelpPki)
	f.StringVar(&o.Cert, "cert", "", pki.HelpCert)
	f.StringVar(&o.Key, "key", "", pki.HelpKey)
	f.StringVar(&o.CA, "ca", "", pki.HelpCA)
	f.BoolVar(&o.Insecure, "insecure", false, pki.HelpInsecure)
	for _, name := range []string{"cert", "key", "ca"} {
		must(cmd.MarkFlagFilename(name))
	}
}

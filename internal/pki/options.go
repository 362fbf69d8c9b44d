package pki

import (
	"crypto/tls"
	"errors"
)

// Options are the command-line flags that say how one end of a connection shows
// who it is: --pki, or --cert, --key and --ca, or --insecure.
type Options struct {
	Pki      string // a directory, or DIR/NAME; see Find
	Files           // instead of Pki
	Insecure bool   // no TLS
}

// Help is what the flags mean, for both ends.
const (
	HelpPki      = "certificates: a directory of rpmemctl pki, or DIR/NAME for one name in it"
	HelpCert     = "this end's certificate (PEM), instead of --pki"
	HelpKey      = "the key of --cert (PEM)"
	HelpCA       = "the authority of the other end's certificate (PEM)"
	HelpInsecure = "no TLS: whoever reaches the port has every right, and reads what passes"
)

// ServerConfig returns the settings of a memory node, nil for Insecure.
func (o *Options) ServerConfig() (*tls.Config, error) { return o.config(Server, ServerConfig) }

// ClientConfig returns the settings of a compute node, nil for Insecure.
func (o *Options) ClientConfig() (*tls.Config, error) { return o.config(Client, ClientConfig) }

func (o *Options) config(use Use, make func(Files) (*tls.Config, error)) (*tls.Config, error) {
	given := 0
	for _, is := range []bool{o.Pki != "", o.Files != Files{}, o.Insecure} {
		if is {
			given++
		}
	}
	switch {
	case given == 0:
		return nil, errors.New("TLS needs certificates: give --pki DIR, or --cert, --key and --ca; 'rpmemctl pki --help' says how to make them")
	case given > 1:
		return nil, errors.New("give one of --pki, --insecure, or --cert with --key and --ca")
	case o.Insecure:
		return nil, nil
	case o.Pki == "" && (o.Cert == "" || o.Key == "" || o.CA == ""):
		return nil, errors.New("--cert, --key and --ca go together")
	}
	files := o.Files
	if o.Pki != "" {
		var err error
		if files, err = Find(o.Pki, use); err != nil {
			return nil, err
		}
	}
	return make(files)
}

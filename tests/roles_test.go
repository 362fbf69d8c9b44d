package tests

// roles are the parts that this binary plays in child processes.
var roles = map[string]func(args []string) error{
	"getxattr": roleGetxattr,
	"setxattr": roleSetxattr,
	"stamp":    roleStamp,
	"watch":    roleWatch,
	"verify":   roleVerify,
	"bolt":     roleBolt,
	"boltload": roleBoltCheck,
	"mapper":   roleMapper,
	"scan":     roleScan,
	"exact":    roleExact,
	"client":   roleClient,
	"truncate": roleTruncate,
	"heap":     roleHeap,
}

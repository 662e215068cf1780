package main

import (
	"context"
	"runtime/debug"

	"github.com/shoalmesh/shoal/internal/cli"
	"github.com/shoalmesh/shoal/internal/node"
)

// version is set at release with -ldflags "-X main.version=v1.2.3".
var version string

// daemon is what the command line may do beyond calling the API. cli and node do not know
// each other; their plain structs have the same fields.
func daemon() cli.Daemon {
	v := versionString()
	return cli.Daemon{
		Version: v,
		Restore: node.Restore,
		Run: func(ctx context.Context, o cli.UpOptions, ready func(cli.Ready)) error {
			return node.Run(ctx, v, node.Options(o), func(r node.Ready) { ready(cli.Ready(r)) })
		},
	}
}

// versionString is the release's version, else what the build knows of its source.
func versionString() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "devel"
	}
	return info.Main.Version
}

package main

import (
	"runtime/debug"

	"github.com/shoalmesh/shoal/internal/cli"
)

// version is set at release with -ldflags "-X main.version=v1.2.3".
var version string

// daemon is what the command line may do beyond calling the API.
func daemon() cli.Daemon {
	return cli.Daemon{Version: versionString()}
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

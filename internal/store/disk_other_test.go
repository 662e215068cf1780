//go:build !linux

package store

import "errors"

var errLinux = errors.New("skip: Linux only")

func childWithoutRoom(*DB, []string) error  { return errLinux }
func childWithoutFsync(*DB, []string) error { return errLinux }

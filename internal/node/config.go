package node

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/shoalmesh/shoal"
)

// Defaults of what a flag or the config file may say.
const (
	defaultNetwork = "main"
	defaultListen  = "0.0.0.0:4420"
	defaultHTTP    = "127.0.0.1:7420"
)

// Options are what the caller of [Run] says. Empty fields leave it to the config file,
// then to what the data dir remembers, then to the default.
type Options struct {
	Home           string   // absolute
	Listen         string   // HOST:PORT of the mesh, UDP and TCP; ":0" picks a free port
	HTTP           string   // HOST:PORT of the loopback HTTP, or "off"
	Join           []string // invite links and multiaddrs
	PSKFile        string
	ConfigFile     string
	PassphraseFile string // opens sealed keys
	RequireToken   bool   // ask for the token on loopback HTTP, too
	LogLevel       string // "debug", "info", "warn" or "error"
	Log            io.Writer
}

// Config is the file config.toml: the same as the flags, for what stays. An unknown key
// is an error, so that a typing mistake does not loosen anything.
type Config struct {
	// Network is the mesh's name; nodes of another name do not hear each other. Default "main".
	Network string `toml:"network"`
	// Listen is HOST:PORT of the mesh, for UDP (QUIC) and TCP. Default 0.0.0.0:4420.
	Listen string `toml:"listen"`
	// HTTP is HOST:PORT of the loopback HTTP, or "off". Default 127.0.0.1:7420.
	HTTP string `toml:"http"`
	// Join lists invite links and multiaddrs to connect to at each start.
	Join []string `toml:"join"`
	// PSKFile holds the key of a private network. Default none.
	PSKFile string `toml:"psk_file"`
	// PassphraseFile holds what opens sealed keys. Default none.
	PassphraseFile string `toml:"key_passphrase_file"`
	// RequireToken closes the loopback routes that answer without a token. Default false.
	RequireToken bool `toml:"require_token"`
	// AllowedHosts are further Host headers that the HTTP port accepts. Default none.
	AllowedHosts []string `toml:"allowed_hosts"`
	// LogLevel is debug, info, warn or error. Default info.
	LogLevel string `toml:"log_level"`
	// TaskTimeout is how long work may take when the asker names no time. Default "10m".
	TaskTimeout Duration `toml:"task_timeout"`
	// OTLPEndpoint is a URL that gets OpenTelemetry spans. Default: the environment's
	// OTEL_EXPORTER_OTLP_ENDPOINT, or none.
	OTLPEndpoint string `toml:"otlp_endpoint"`
}

// Duration is a time.Duration that reads "10m".
type Duration time.Duration

// UnmarshalText parses a duration such as "10m".
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil || v < 0 {
		return fmt.Errorf("%q is not a positive duration such as 10m", text)
	}
	*d = Duration(v)
	return nil
}

// loadConfig reads the config file and lets the options win over it.
func loadConfig(o Options) (Config, error) {
	var c Config
	path := o.ConfigFile
	if path == "" {
		path = filepath.Join(o.Home, "config.toml")
	}
	raw, err := os.ReadFile(path)
	switch {
	case err == nil:
		if err := parseConfig(raw, &c); err != nil {
			return Config{}, shoal.NewError(shoal.Invalid, "bad_config", "the config file "+path+" is wrong", "see docs/ops/config.md for the keys").Because(err)
		}
	case !os.IsNotExist(err) || o.ConfigFile != "":
		return Config{}, shoal.NewError(shoal.NotFound, "no_config", "the config file "+path+" cannot be read", "check --config").Because(err)
	}
	if o.Listen != "" {
		c.Listen = o.Listen
	}
	if o.HTTP != "" {
		c.HTTP = o.HTTP
	}
	if o.PSKFile != "" {
		c.PSKFile = o.PSKFile
	}
	if o.PassphraseFile != "" {
		c.PassphraseFile = o.PassphraseFile
	}
	if o.LogLevel != "" {
		c.LogLevel = o.LogLevel
	}
	c.Join = append(c.Join, o.Join...)
	c.RequireToken = c.RequireToken || o.RequireToken
	if len(c.Network) > 64 || strings.ContainsAny(c.Network, "/ \t\n") {
		return Config{}, shoal.NewError(shoal.Invalid, "bad_network", fmt.Sprintf("the network name %q is malformed", c.Network), "use at most 64 bytes without spaces and slashes")
	}
	return c, nil
}

func parseConfig(raw []byte, c *Config) error {
	dec := toml.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	err := dec.Decode(c)
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		return errors.New("unknown key:\n" + strict.String())
	}
	var bad *toml.DecodeError
	if errors.As(err, &bad) {
		row, col := bad.Position()
		return fmt.Errorf("line %d, column %d: %w", row, col, err)
	}
	return err
}

func (c Config) level() (slog.Level, error) {
	var l slog.Level
	if c.LogLevel == "" {
		return slog.LevelInfo, nil
	}
	if err := l.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return 0, shoal.NewError(shoal.Invalid, "bad_log_level", "unknown log level "+c.LogLevel, "use debug, info, warn or error")
	}
	return l, nil
}

package cli

import (
	"runtime"

	"github.com/spf13/cobra"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this program",
		Example: "  shoal version\n  shoal version -o json",
		Args:    arguments(0),
		RunE: func(*cobra.Command, []string) error {
			version := a.daemon.Version
			if version == "" {
				version = "unknown"
			}
			if a.asJSON() {
				a.printJSON(struct {
					Version string `json:"version"`
					Go      string `json:"go"`
					OS      string `json:"os"`
					Arch    string `json:"arch"`
				}{version, runtime.Version(), runtime.GOOS, runtime.GOARCH})
			} else {
				a.printf("shoal %s (%s %s/%s)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			}
			return nil
		},
	}
}

func (a *app) completionCommand() *cobra.Command {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "Print a completion script for bash, zsh, fish or powershell",
		Example: `  shoal completion bash > /etc/bash_completion.d/shoal
  shoal completion zsh > "${fpath[1]}/_shoal"
  shoal completion fish > ~/.config/fish/completions/shoal.fish`,
		Args:      arguments(1, "SHELL"),
		ValidArgs: shells,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch root := cmd.Root(); args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.out, true)
			case "zsh":
				return root.GenZshCompletion(a.out)
			case "fish":
				return root.GenFishCompletion(a.out, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(a.out)
			default:
				return usage(didYouMean(nearest(args[0], shells))+"use bash, zsh, fish or powershell", "unknown shell %q", clip(args[0], 40))
			}
		},
	}
}

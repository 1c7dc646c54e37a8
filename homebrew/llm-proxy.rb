# Written by scripts/release from llm-proxy.rb.in. README.md says how it gets into a tap.
class LlmProxy < Formula
  desc "Local proxy for LLM APIs that passes every byte unchanged and keeps a record"
  homepage "https://example.invalid/llm-proxy"
  version "0.1.0"
  license "MIT"

  on_macos do
    on_arm do
      url "https://example.invalid/llm-proxy/releases/download/v0.1.0/llm-proxy-0.1.0-macos-aarch64.tar.gz"
      sha256 "0000000000000000000000000000000000000000000000000000000000000000"
    end
    on_intel do
      url "https://example.invalid/llm-proxy/releases/download/v0.1.0/llm-proxy-0.1.0-macos-x86_64.tar.gz"
      sha256 "0000000000000000000000000000000000000000000000000000000000000000"
    end
  end

  on_linux do
    on_arm do
      url "https://example.invalid/llm-proxy/releases/download/v0.1.0/llm-proxy-0.1.0-linux-aarch64.tar.gz"
      sha256 "0000000000000000000000000000000000000000000000000000000000000000"
    end
    on_intel do
      url "https://example.invalid/llm-proxy/releases/download/v0.1.0/llm-proxy-0.1.0-linux-x86_64.tar.gz"
      sha256 "0000000000000000000000000000000000000000000000000000000000000000"
    end
  end

  # The tree finds its libraries from where it lies; names of its own would not fit into them.
  preserve_rpath

  def install
    libexec.install "runtime"
    # Every new shell runs `llm-proxy --env`: this launcher answers it without starting Python. The path of opt stays the
    # same from one version to the next.
    inreplace "launcher.sh", "@PYTHON@", opt_libexec/"runtime/bin/python"
    bin.install "launcher.sh" => "llm-proxy"
    man1.install "llm-proxy.1"
    bash_completion.install "completions/llm-proxy.bash" => "llm-proxy"
    zsh_completion.install "completions/_llm-proxy"
    fish_completion.install "completions/llm-proxy.fish"
  end

  # Nothing is done after installing: Homebrew does that in a sandbox with another HOME. The daemon's first start sets up
  # the shells instead.
  service do
    run [opt_bin/"llm-proxy", "--service"]
    environment_variables LLM_PROXY_FIRST_RUN: "shell"
    keep_alive true
    process_type :interactive
    throttle_interval 5
    stop_timeout 30
    log_path var/"log/llm-proxy.log"
    error_log_path var/"log/llm-proxy.log"
  end

  def caveats
    <<~EOS
      To start it now and at every login:
        brew services start llm-proxy
      Its first start adds a block to your shell's files; new shells use it from then on.

      After `brew upgrade llm-proxy`, so that the new version runs:
        brew services restart llm-proxy

      Before `brew uninstall llm-proxy`, to undo all of that:
        llm-proxy --uninstall
    EOS
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/llm-proxy --version")
    assert_empty shell_output("#{bin}/llm-proxy --env")
  end
end

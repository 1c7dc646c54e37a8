# The formula, for a tap. A release fills in url and sha256 and writes the resources; README.md says what is missing.
class LlmProxy < Formula
  include Language::Python::Virtualenv

  desc "Local proxy for LLM APIs that passes every byte unchanged and keeps a record"
  homepage "https://example.invalid/llm-proxy"
  url "https://example.invalid/llm-proxy/releases/download/v0.1.0/llm_proxy-0.1.0.tar.gz"
  sha256 "0000000000000000000000000000000000000000000000000000000000000000"
  license "MIT"

  depends_on "python@3.13"

  # resources: written by a release

  def install
    virtualenv_install_with_resources
    # every new shell runs `llm-proxy --env`: this launcher answers it without starting Python
    rm bin/"llm-proxy"
    inreplace "packaging/launcher.sh", "@PYTHON@", libexec/"bin/python"
    bin.install "packaging/launcher.sh" => "llm-proxy"
  end

  # No post_install: it would run in a sandbox with another HOME. The daemon's first start sets up the shells instead.
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

      Before `brew uninstall`, to undo all of that:
        llm-proxy --uninstall
    EOS
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/llm-proxy --version")
    assert_empty shell_output("#{bin}/llm-proxy --env")
  end
end

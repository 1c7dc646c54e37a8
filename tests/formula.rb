# A stand-in for Homebrew's formula DSL: loads a formula as on one platform and tells what it says, as JSON.
#   ruby tests/formula.rb FORMULA OS ARCH                    describe it (OS macos|linux, ARCH arm|intel)
#   ruby tests/formula.rb FORMULA OS ARCH PREFIX FOLDER      also install it into the prefix from the unpacked archive
#   ruby tests/formula.rb FORMULA OS ARCH PREFIX             also run its test block
# What it takes and refuses follows Homebrew's own lists as of August 2026: the order of a formula's parts, the keys of a
# service and their values. Whatever is not among them is an error. Bottles, dependencies and resources are left out.
require "fileutils"
require "json"
require "open3"
require "pathname"
require "tmpdir"

ORDER = %i[desc homepage url version sha256 license on_macos on_linux preserve_rpath service test].freeze
PREFIX = Pathname(ARGV[3] || "/opt/homebrew")

class Refused < StandardError; end

class Pathname
  # Move files into this folder, under new names where a hash gives them.
  def install(*sources)
    mkpath
    sources.flat_map { |one| one.is_a?(Hash) ? one.to_a : [[one, File.basename(one)]] }.each do |from, to|
      raise Refused, "there is no #{from} to install" unless File.exist?(from)

      FileUtils.mv(from, self / to)
    end
  end
end

class Service
  KEYS = %i[run environment_variables keep_alive process_type throttle_interval stop_timeout log_path error_log_path
            working_dir root_dir input_path run_at_load launch_only_once restart_delay require_root nice].freeze
  PROCESS_TYPES = %i[background standard interactive adaptive].freeze
  KEEP_ALIVE = %i[always successful_exit crashed path].freeze
  attr_reader :said

  def initialize(formula, &block)
    @formula = formula
    @said = { run_at_load: true }
    instance_eval(&block)
  end

  KEYS.each do |key|
    define_method(key) do |value|
      raise Refused, "#{key} is said twice" if key != :run_at_load && @said.key?(key)

      @said[key] = send(:"check_#{key}", value)
    end
  end

  def opt_bin = @formula.opt_bin
  def var = @formula.var

  private

  def check_run(value) = Array(value).map(&:to_s)
  def check_environment_variables(value) = value.transform_values(&:to_s)

  def check_keep_alive(value)
    value = { always: value } unless value.is_a?(Hash)
    raise Refused, "keep_alive allows #{KEEP_ALIVE}, not #{value}" unless (value.keys - KEEP_ALIVE).empty?

    value
  end

  def check_process_type(value)
    raise Refused, "process_type allows #{PROCESS_TYPES}, not #{value}" unless PROCESS_TYPES.include?(value)

    value
  end

  %i[throttle_interval stop_timeout restart_delay nice].each do |key|
    define_method(:"check_#{key}") { |value| value.is_a?(Integer) ? value : raise(Refused, "#{key} takes an integer") }
  end
  %i[log_path error_log_path working_dir root_dir input_path].each { |key| define_method(:"check_#{key}", &:to_s) }
  %i[run_at_load launch_only_once require_root].each { |key| define_method(:"check_#{key}") { |value| value == true } }
end

class Formula
  class << self
    attr_reader :service_block, :test_block

    def inherited(formula)
      super
      $formula = formula
    end

    %i[desc homepage url version sha256 license].each do |part|
      define_method(part) do |text = nil|
        return said[part] unless text

        note(part)
        raise Refused, "#{part} is said twice" if said.key?(part)

        said[part] = text
      end
    end

    def preserve_rpath(value: true)
      note(:preserve_rpath)
      said[:preserve_rpath] = value
    end

    def on_macos(&block) = on(:on_macos, ARGV[1] == "macos", &block)
    def on_linux(&block) = on(:on_linux, ARGV[1] == "linux", &block)
    def on_arm(&block) = on(nil, ARGV[2] == "arm", &block)
    def on_intel(&block) = on(nil, ARGV[2] == "intel", &block)

    def service(&block)
      note(:service)
      @service_block = block
    end

    def test(&block)
      note(:test)
      @test_block = block
    end

    def said = @said ||= {}
    def parts = @parts ||= []

    private

    def note(part) = @inside ? nil : parts << part

    def on(part, here)
      note(part) if part
      was, @inside = @inside, true
      yield if here
    ensure
      @inside = was
    end
  end

  def name = "llm-proxy"
  def version = self.class.version
  def prefix = PREFIX / "Cellar" / name / version
  def opt_prefix = PREFIX / "opt" / name
  def opt_bin = opt_prefix / "bin"
  def opt_libexec = opt_prefix / "libexec"
  def var = PREFIX / "var"
  def bin = prefix / "bin"
  def libexec = prefix / "libexec"
  def man1 = prefix / "share/man/man1"
  def bash_completion = prefix / "etc/bash_completion.d"
  def zsh_completion = prefix / "share/zsh/site-functions"
  def fish_completion = prefix / "share/fish/vendor_completions.d"

  def inreplace(path, before, after)
    text = File.read(path)
    raise Refused, "inreplace: no #{before} in #{path}" unless text.include?(before)

    File.write(path, text.gsub(before) { after.to_s })
  end

  def shell_output(command, expected = 0)
    out, status = Open3.capture2({ "HOME" => @home }, command)
    raise Refused, "#{command}: exit #{status.exitstatus}, not #{expected}" if status.exitstatus != expected

    out
  end

  def assert_match(wanted, text) = text[wanted] || raise(Refused, "#{text.inspect} does not match #{wanted.inspect}")
  def assert_empty(text) = text.empty? || raise(Refused, "#{text.inspect} is not empty")

  def try = Dir.mktmpdir { |home| (@home = home) && instance_eval(&self.class.test_block) }
end

# What `brew link` does: opt names this version, and what is in bin, share and etc can be found.
def link(formula)
  opt = PREFIX / "opt"
  opt.mkpath
  FileUtils.rm_f(formula.opt_prefix)
  File.symlink("../Cellar/llm-proxy/#{formula.version}", formula.opt_prefix)
  %w[bin share etc].each do |folder|
    Dir.glob("#{formula.prefix}/#{folder}/**/*").select { |path| File.file?(path) }.each do |path|
      place = PREFIX / Pathname(path).relative_path_from(formula.prefix)
      place.dirname.mkpath
      FileUtils.rm_f(place)
      File.symlink(Pathname(path).relative_path_from(place.dirname), place)
    end
  end
end

begin
  load File.expand_path(ARGV[0])
  formula = $formula.new
  wrong_order = $formula.parts.each_cons(2).find { |one, other| ORDER.index(one) > ORDER.index(other) }
  raise Refused, "#{wrong_order[1]} must stand before #{wrong_order[0]}" if wrong_order
  raise Refused, "post_install runs in a sandbox with another HOME" if formula.respond_to?(:post_install)

  if ARGV[4]
    Dir.chdir(ARGV[4]) { formula.install }
    Dir.glob("#{formula.bin}/*").each { |path| File.chmod(0o555, path) }
    link(formula)
  elsif ARGV[3]
    formula.try
  end
  service = Service.new(formula, &$formula.service_block).said
  puts JSON.generate($formula.said.merge(service: service, caveats: formula.caveats, parts: $formula.parts))
rescue Refused, NoMethodError => e
  warn "formula: #{e.message}"
  exit 1
end

//! The template that a language model's tokenizer wraps a prompt in.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error as JinjaError, ErrorKind, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Deserialize;

use crate::weights::Repository;
use crate::{Error, Result};

/// The template's name inside of its environment.
const NAME: &str = "chat";

/// The keys of `tokenizer_config.json` that a template is made of.
#[derive(Default, Deserialize)]
struct Config {
    chat_template: Option<Templates>,
}

/// `chat_template`: one template, or several with names, of which `default` is used unless another is asked for.
#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Several(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

/// A chat template in Jinja, rendered as transformers' `apply_chat_template` renders it.
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    /// The file that the template was read from.
    file: String,
}

impl ChatTemplate {
    /// Reads the template of the tokenizer in the folder `part`: `chat_template.jinja`, else the key `chat_template` of
    /// `tokenizer_config.json`.
    ///
    /// # Errors
    /// Names the file when there is none, or when it is no template.
    pub(super) fn open(repository: &Repository, part: &str) -> Result<Self> {
        let (file, config_file) = (format!("{part}/chat_template.jinja"), format!("{part}/tokenizer_config.json"));
        if repository.try_bytes(&file)?.is_some() {
            let source = repository.text(&file)?;
            return Self::new(file, source);
        }
        let Config { chat_template } = repository.try_json(&config_file)?.unwrap_or_default();
        let source = match chat_template {
            Some(Templates::One(source)) => Some(source),
            Some(Templates::Several(named)) => {
                named.into_iter().find(|template| template.name == "default").map(|template| template.template)
            }
            None => None,
        };
        match source {
            Some(source) => Self::new(config_file, source),
            None => {
                let message = format_args!("chat_template is missing; the key, or the file {file}, is expected");
                Err(Error::file(config_file.as_str(), message))
            }
        }
    }

    fn new(file: String, source: String) -> Result<Self> {
        let fault = |error: JinjaError| Error::file(file.as_str(), format_args!("chat_template: {error}"));
        let mut environment = Environment::new();
        // transformers' own settings; templates are written for them.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(fault)?;
        environment.set_syntax(syntax);
        environment.set_unknown_method_callback(unknown_method_callback);
        let raise = |message: String| -> std::result::Result<Value, JinjaError> {
            Err(JinjaError::new(ErrorKind::InvalidOperation, message))
        };
        environment.add_function("raise_exception", raise);
        environment.add_template_owned(NAME, source).map_err(fault)?;
        Ok(Self { environment, file })
    }

    /// One message of a user, and the beginning of the answer.
    ///
    /// # Errors
    /// Names the template's file when it fails.
    pub(super) fn render(&self, prompt: &str, enable_thinking: bool) -> Result<String> {
        let values = context! {
            messages => [context! { role => "user", content => prompt }],
            tools => (),
            documents => (),
            add_generation_prompt => true,
            enable_thinking,
        };
        let rendered = self.environment.get_template(NAME).and_then(|template| template.render(values));
        rendered.map_err(|error| Error::file(self.file.as_str(), format_args!("chat_template: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The features of Qwen3's template: blocks on lines of their own, `namespace`, a reversed slice, Python's methods,
    /// `loop`, tests, a filter in a branch that is not taken.
    const TEMPLATE: &str = r"{%- if tools %}
    {{- tools | tojson }}
{%- elif messages[0].role == 'system' %}
    {{- messages[0].content }}
{%- endif %}
{%- set ns = namespace(open=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.open and message.role == 'user' and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.open = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == 'assistant' %}
        {{- content.split('</think>')[-1].lstrip('\n') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}";

    fn folder(files: &[(&str, &str)]) -> Result<ChatTemplate> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("model_index.json"), "{}").unwrap();
        std::fs::create_dir(dir.path().join("tokenizer")).unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join("tokenizer").join(name), text).unwrap();
        }
        ChatTemplate::open(&Repository::folder(dir.path()).unwrap(), "tokenizer")
    }

    #[test]
    fn a_template_of_qwens_kind_is_rendered_with_and_without_thinking() {
        let template = folder(&[("chat_template.jinja", TEMPLATE)]).unwrap();
        let whole = "<|im_start|>user\na {{ red }} <b>cat</b>\n<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(template.render("a {{ red }} <b>cat</b>\n", true).unwrap(), whole);
        let closed = format!("{whole}<think>\n\n</think>\n\n");
        assert_eq!(template.render("a {{ red }} <b>cat</b>\n", false).unwrap(), closed);
    }

    #[test]
    fn a_file_of_its_own_comes_before_the_configuration_and_its_default_before_others() {
        let several = r#"{"chat_template": [{"name": "tool_use", "template": "tool"}, {"name": "default", "template": "plain"}]}"#;
        let config = ("tokenizer_config.json", several);
        assert_eq!(folder(&[config]).unwrap().render("x", true).unwrap(), "plain");
        let file = ("chat_template.jinja", "file: {{ messages[0]['content'] }}");
        assert_eq!(folder(&[config, file]).unwrap().render("x", true).unwrap(), "file: x");
    }

    #[test]
    fn a_missing_or_broken_template_is_told_by_its_file() {
        let told = |files: &[(&str, &str)]| folder(files).err().unwrap().to_string();
        assert!(told(&[]).starts_with("tokenizer/tokenizer_config.json: chat_template is missing"));
        assert!(
            told(&[("chat_template.jinja", "{% if %}")]).starts_with("tokenizer/chat_template.jinja: chat_template: ")
        );
        let raising = folder(&[("chat_template.jinja", "{{ raise_exception('no pictures') }}")]).unwrap();
        let error = raising.render("x", true).unwrap_err().to_string();
        assert!(error.starts_with("tokenizer/chat_template.jinja: ") && error.contains("no pictures"), "{error}");
    }
}

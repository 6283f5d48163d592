//! What each kind of node must be told.

use std::collections::BTreeMap;

use super::{Check, Finding, Links, Path, Place};
use crate::workflow::definition::{Http, Llm, NodeKind, Price, Run, Wait};
use crate::workflow::duration::parse_duration;
use crate::workflow::suggestion;

impl Check<'_> {
    /// Checks what a node, or a compensation, is told. `path` leads to what holds the kind's name.
    pub(super) fn kind(&mut self, kind: &NodeKind, path: &Path, links: &mut Links) {
        let path = &path.key(kind.name());
        match kind {
            NodeKind::Run(run) => self.run(run, path, links),
            NodeKind::Http(http) => self.http(http, path, links),
            NodeKind::Llm(llm) => self.llm(llm, path, links),
            NodeKind::Set(variables) => {
                if variables.is_empty() {
                    self.report(Finding::new(path.clone(), "`set` names no variable"));
                }
                for (name, value) in variables {
                    self.variable_name("a variable", name, &path.key(name), Finding::at_key);
                    self.value(value, &path.key(name), Place::Saved, links);
                }
            }
            NodeKind::Approval(approval) => {
                self.present(&approval.message, "an approval asks something", &path.key("message"));
                self.text(&approval.message, &path.key("message"), Place::Saved, links);
            }
            NodeKind::Wait(wait) => self.wait(wait, path, links),
            NodeKind::Call(call) => {
                self.present(&call.name, "`call` names a closure", &path.key("name"));
                if call.name.contains("${{") {
                    let message = "the name of a closure cannot be an expression";
                    self.report(Finding::new(path.key("name"), message));
                }
                self.value(&call.with, &path.key("with"), Place::Node, links);
            }
        }
    }

    fn run(&mut self, run: &Run, path: &Path, links: &mut Links) {
        self.present(&run.command, "`run` has a command", &path.key("command"));
        self.text(&run.command, &path.key("command"), Place::Node, links);
        self.optional_text(&run.cwd, &path.key("cwd"), links);
        self.optional_text(&run.shell, &path.key("shell"), links);
        self.texts(&run.env, &path.key("env"), links);
        for name in run.env.keys() {
            if name.is_empty() || name.contains(['=', '\0']) {
                let finding =
                    Finding::new(path.key("env").key(name), "this is no name of an environment variable");
                self.report(finding.at_key());
            }
        }
    }

    fn http(&mut self, http: &Http, path: &Path, links: &mut Links) {
        self.present(&http.url, "`http` has an address", &path.key("url"));
        self.text(&http.url, &path.key("url"), Place::Node, links);
        self.texts(&http.headers, &path.key("headers"), links);
        self.texts(&http.query, &path.key("query"), links);
        self.optional_text(&http.body, &path.key("body"), links);
        if let Some(json) = &http.json {
            self.value(json, &path.key("json"), Place::Node, links);
            if http.body.is_some() {
                let message = "a request has one body: `body` or `json`";
                self.report(Finding::new(path.key("json"), message).at_key());
            }
        }
        if http.expect.iter().any(|status| !(100..=599).contains(status)) {
            let message = "`expect` lists HTTP statuses: 100 to 599";
            self.report(Finding::new(path.key("expect"), message));
        }
    }

    fn llm(&mut self, llm: &Llm, path: &Path, links: &mut Links) {
        if llm.prompt.is_none() && llm.messages.is_none() {
            let finding = Finding::new(path.clone(), "`llm` asks nothing");
            self.report(finding.help("give it a `prompt`, `messages`, or both"));
        }
        for (name, text) in [
            ("model", &llm.model),
            ("prompt", &llm.prompt),
            ("system", &llm.system),
            ("base_url", &llm.base_url),
            ("api_key", &llm.api_key),
        ] {
            self.optional_text(text, &path.key(name), links);
        }
        if let Some(messages) = &llm.messages {
            if !messages.is_array() && !messages.is_string() {
                let message = "`messages` is a list of `{role, content}`, or an expression that gives one";
                self.report(Finding::new(path.key("messages"), message));
            }
            self.value(messages, &path.key("messages"), Place::Node, links);
        }
        for (name, value) in &llm.extra {
            self.value(value, &path.key("extra").key(name), Place::Node, links);
        }
        if llm.temperature.is_some_and(|temperature| !(temperature.is_finite() && temperature >= 0.0)) {
            self.report(Finding::new(path.key("temperature"), "`temperature` is 0 or more"));
        }
        if llm.max_tokens == Some(0) {
            self.report(Finding::new(path.key("max_tokens"), "with `max_tokens` of 0 there is no answer"));
        }
        if let Some(price) = &llm.price {
            self.price(price, &path.key("price"));
        }
    }

    fn price(&mut self, price: &Price, path: &Path) {
        let cached = price.cached_input.as_ref().map(|price| ("cached_input", price));
        for (name, price) in [("input", &price.input), ("output", &price.output)].into_iter().chain(cached) {
            let (whole, fraction) = price.split_once('.').unwrap_or((price, "0"));
            let digits =
                |text: &str| (1..=9).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
            if !digits(whole) || !digits(fraction) {
                let finding =
                    Finding::new(path.key(name), format!("`{}` is no price", suggestion::shortened(price)));
                self.report(finding.help("write US dollars for a million tokens, such as \"2.50\""));
            }
        }
    }

    fn wait(&mut self, wait: &Wait, path: &Path, links: &mut Links) {
        let (text, path, problem) = match wait {
            Wait::For(text) => {
                (text, path.clone(), parse_duration(text).err().map(|error| error.to_string()))
            }
            Wait::Until(text) => {
                let problem = chrono::DateTime::parse_from_rfc3339(text).err().map(|_| {
                    format!(
                        "`{}` is no moment: write one such as `2026-01-31T12:00:00Z`",
                        suggestion::shortened(text)
                    )
                });
                (text, path.key("until"), problem)
            }
        };
        if text.contains("${{") {
            self.text(text, &path, Place::Node, links);
        } else if let Some(problem) = problem {
            self.report(Finding::new(path, problem));
        }
    }

    fn optional_text(&mut self, text: &Option<String>, path: &Path, links: &mut Links) {
        if let Some(text) = text {
            self.text(text, path, Place::Node, links);
        }
    }

    fn texts(&mut self, texts: &BTreeMap<String, String>, path: &Path, links: &mut Links) {
        for (name, text) in texts {
            self.text(text, &path.key(name), Place::Node, links);
        }
    }

    fn present(&mut self, text: &str, message: &str, path: &Path) {
        if text.trim().is_empty() {
            self.report(Finding::new(path.clone(), format!("{message}, and this is empty")));
        }
    }
}

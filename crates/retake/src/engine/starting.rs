//! How an execution begins: its first values, its name and its first point.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use tracing::{Instrument, Span};

use super::held::Held;
use super::run::Opened;
use super::secret::{Masks, Secrets, definition_of, refuse_secret, refuse_secrets};
use super::trace::{self, RunKind};
use super::{Engine, EngineError, Run};
use crate::execution::{ExecutionContext, ExecutionId, Subject};
use crate::store::{Cause, Conflict, NewCheckpoint, NewExecution, StoreError, delta};
use crate::workflow::{Field, Root, Scope, Workflow, evaluate_json};

/// How often a readable name is drawn before an execution is named by its id.
const NAME_DRAWS_MAX: usize = 8;

/// How an execution is started.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// The inputs. Those that the workflow has a default for may be left out.
    pub inputs: BTreeMap<String, Value>,
    /// The readable name; without it, one is drawn.
    pub name: Option<String>,
}

/// What an execution begins with.
pub(super) struct Draft {
    pub(super) ctx: ExecutionContext,
    pub(super) masks: Arc<Masks>,
}

/// Names for a new execution: the one that is given, or some that are drawn, and its id in the end.
pub(super) struct Names {
    given: Option<String>,
    id: ExecutionId,
    drawn: usize,
}

impl Engine {
    /// Creates an execution and takes the lease on it. Returns when its start is durable; nothing has run then.
    ///
    /// # Errors
    /// [`EngineError::Input`], [`EngineError::NoHandler`] and [`EngineError::Secret`], before anything is created;
    /// [`Conflict::NameTaken`].
    pub async fn start(&self, workflow: Arc<Workflow>, start: Start) -> Result<Run, EngineError> {
        self.check_handlers(&workflow)?;
        let id = self.clock.new_id();
        let draft = self.draft(id, &workflow, &start)?;
        let span = trace::execution(RunKind::Started, id, workflow.name());
        let run = self.begin(workflow, draft, start.name, &span).instrument(span.clone()).await;
        run.inspect_err(|error| trace::refused(&span, error))
    }

    pub(super) async fn begin(
        &self,
        workflow: Arc<Workflow>,
        Draft { mut ctx, masks }: Draft,
        name: Option<String>,
        span: &Span,
    ) -> Result<Run, EngineError> {
        let mut names = Names::new(name, ctx.execution_id);
        let name = loop {
            let name = names.draw();
            let (new, first) = self.first_point(&workflow, &mut ctx, &name, &masks)?;
            let created = self.store.create(new, first).await.map_err(EngineError::from);
            if names.takes(created)?.is_some() {
                break name;
            }
        };
        trace::identify(span, &name, &workflow);
        let held = Held::take(&self.store, &self.clock, ctx.execution_id, self.lease_ttl).await?;
        let name = name.into();
        let counter_actions = BTreeMap::new();
        let (span, undone_to) = (span.clone(), None);
        let opened = Opened { held, workflow, name, ctx, head: 1, masks, counter_actions, undone_to, span };
        Run::new(self.clone(), opened)
    }

    /// Returns the first values of the variables that are wanted, and what may be said of them: what is secret is
    /// masked.
    pub(super) fn first_values(
        &self,
        workflow: &Workflow,
        ctx: &ExecutionContext,
        execution: &str,
        masks: &Arc<Masks>,
        wanted: impl Fn(&str, &Value) -> bool,
    ) -> Result<BTreeMap<String, Value>, EngineError> {
        let scope: Arc<dyn Scope> = Arc::new(Opening {
            ctx: ctx.clone(),
            name: execution.to_owned(),
            secrets: Arc::clone(&self.secrets),
            masks: Arc::clone(masks),
        });
        let vars = workflow.definition().vars.iter().filter(|(name, value)| wanted(name, value));
        vars.map(|(name, value)| match evaluate_json(value, &scope) {
            Ok(value) => Ok((name.clone(), masks.value(value))),
            Err(source) => Err(EngineError::Variable { name: name.clone(), source }),
        })
        .collect()
    }

    /// Returns the state that an execution begins with, but for its variables.
    pub(super) fn draft(
        &self,
        id: ExecutionId,
        workflow: &Workflow,
        start: &Start,
    ) -> Result<Draft, EngineError> {
        let mut ctx = ExecutionContext::with_id(id, workflow.id(), self.clock.now());
        ctx.inputs = workflow.definition().inputs_from(start.inputs.clone())?.into_iter().collect();
        let masks = Arc::new(Masks::of(Some(workflow), &*self.secrets));
        refuse_secret(&masks, "the workflow", &definition_of(workflow))?;
        refuse_secrets(&masks, "input", ctx.inputs.iter())?;
        if let Some(name) = &start.name {
            refuse_secret(&masks, "the name", &Value::from(name.as_str()))?;
        }
        Ok(Draft { ctx, masks })
    }

    pub(super) fn first_point(
        &self,
        workflow: &Workflow,
        ctx: &mut ExecutionContext,
        name: &str,
        masks: &Arc<Masks>,
    ) -> Result<(NewExecution, NewCheckpoint), EngineError> {
        let definition = workflow.definition();
        for (variable, value) in self.first_values(workflow, ctx, name, masks, |_, _| true)? {
            ctx.set_variable(variable, value);
        }
        let new = NewExecution {
            id: ctx.execution_id,
            name: name.to_owned(),
            workflow_id: workflow.id(),
            workflow_name: workflow.name().to_owned(),
            definition: definition.to_json(),
            origin: None,
        };
        let mut first = self.new_checkpoint(ctx, Cause::Start);
        first.delta = delta(None, ctx, |_| None)?;
        first.compress = definition.checkpoints.compress;
        Ok((new, first))
    }
}

impl Names {
    pub(super) fn new(given: Option<String>, id: ExecutionId) -> Self {
        Self { given, id, drawn: 0 }
    }

    /// Returns a name to try.
    pub(super) fn draw(&mut self) -> String {
        if let Some(given) = &self.given {
            return given.clone();
        }
        self.drawn += 1;
        let drawn = (self.drawn <= NAME_DRAWS_MAX).then(|| petname::petname(2, "-")).flatten();
        drawn.unwrap_or_else(|| self.id.to_string())
    }

    /// Returns what was made under a name, or `None` where that was taken and there are more to try.
    pub(super) fn takes<T>(&self, created: Result<T, EngineError>) -> Result<Option<T>, EngineError> {
        match created {
            Err(EngineError::Store(StoreError::Conflict(Conflict::NameTaken(_))))
                if self.given.is_none() && self.drawn <= NAME_DRAWS_MAX =>
            {
                Ok(None)
            }
            created => created.map(Some),
        }
    }
}

/// What the expressions of `vars` see when an execution starts: its inputs, its id and name, and secrets.
#[derive(Debug)]
struct Opening {
    ctx: ExecutionContext,
    name: String,
    secrets: Arc<dyn Secrets>,
    masks: Arc<Masks>,
}

impl Scope for Opening {
    fn look(&self, subject: &Subject, _field: Field) -> Option<Value> {
        match subject {
            Subject::Input(name) => self.ctx.inputs.get(name).cloned(),
            Subject::Secret(name) => self.secrets.secret(name).map(|value| {
                self.masks.remember(name, &value);
                Value::String(value)
            }),
            Subject::Variable(_) | Subject::Node(_) => None,
        }
    }

    fn keys(&self, root: Root) -> Vec<String> {
        match root {
            Root::Inputs => self.ctx.inputs.keys().cloned().collect(),
            Root::Variables | Root::Nodes | Root::Secrets => Vec::new(),
        }
    }

    fn execution_id(&self) -> ExecutionId {
        self.ctx.execution_id
    }

    fn execution_name(&self) -> String {
        self.name.clone()
    }
}

//! The `retake` command: reads arguments, calls the library, prints, and chooses the exit code.

mod app;
mod arguments;
mod arrival;
mod asking;
mod assignment;
mod barrier;
mod change;
mod command;
mod detach;
mod drive;
mod failure;
mod inputs;
mod key_source;
mod output;
mod plan;
mod progress;
mod question;
mod signals;
mod table;
mod telemetry;
mod wording;

use std::process::ExitCode;

use clap::Parser;

use crate::app::App;
use crate::arguments::Arguments;
use crate::telemetry::Telemetry;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return output::usage(&error),
    };
    let output = output::Output::new(arguments.json);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output.fail(&failure::Failure::system("the runtime cannot start", error)),
    };
    let code = runtime.block_on(async {
        signals::survive_file_size_limits();
        let telemetry = match Telemetry::start(&arguments, &output).await {
            Ok(telemetry) => telemetry,
            Err(failure) => return output.fail(&failure),
        };
        let app = App::new(&arguments, output.clone(), telemetry.trace_context());
        let code = match telemetry.within(command::execute(&app, arguments.command)).await {
            Ok(code) => code,
            Err(failure) => output.fail(&app.advise(failure).await),
        };
        telemetry.finish().await;
        code
    });
    // What a node's handler still does must not keep the command from ending.
    runtime.shutdown_background();
    output.close().unwrap_or(code)
}

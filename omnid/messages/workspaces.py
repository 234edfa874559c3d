"""What goes wrong with the places in which agents work."""

from omnid.messages.message import Message

WORKSPACES: dict[str, Message] = {
    "workspace_full": Message(
        "There is no room for a workspace of {task}: {detail}.",
        "workspace.kept_max and workspace.bytes_max bound what the work of agents may take on the disk.",
        "`omnictl merge` or `omnictl workspaces rm` one of these: {tasks}. It goes on by itself then.",
    ),
    "workspace_down": Message(
        "No workspace can be made now: {detail}.",
        "Agents work in a git worktree of their own, so git and the directory of the workspaces must be usable.",
        "Mend it, and it goes on by itself; or submit the task with `--workspace none`.",
    ),
    "workspace_impossible": Message(
        "{directory} can't have a workspace: {detail}.",
        "Agents in a git repository work in a worktree that is made from its current commit.",
        "{remedy}",
    ),
    "setup_failed": Message(
        "The workspace of {task} can't be made ready: {detail}.",
        "workspace.setup is run in each new worktree, and a task only starts in one where it succeeded.",
        "Correct workspace.setup in the config, or submit the task with `--workspace none`.",
    ),
    "no_workspace": Message(
        "{task} has no workspace.",
        "{detail}",
        "`omnictl workspaces` lists those that are there.",
    ),
    "workspace_busy": Message(
        "{task} is {state}, so its workspace stays as it is.",
        "What an attempt may still work on is neither merged nor removed.",
        "Wait for its end with `omnictl wait {task}`, or cancel it first.",
    ),
    "merge_conflict": Message(
        "{task} can't be merged into {into}: both changed {files}.",
        "The merge was tried beside the tree, which stays as it was.",
        "Merge by hand with `git merge {branch}` in {repository}, or let an agent merge {into} in {path} first.",
    ),
    "merge_refused": Message(
        "{task} can't be merged in {repository}: {detail}.",
        "A merge goes into the branch that is checked out there, and touches nothing that is not committed.",
        "{remedy}",
    ),
}

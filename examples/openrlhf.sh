#!/bin/bash
# Train a policy with OpenRLHF on the reward of each prompt's user.
#
# prompts.jsonl: {"prompt": "...", "user_id": "seen-00001"}, or prompt as a list of chat messages.
# The client sends no headers, so the token stands in the address. Instead of it, --no-token lets
# everybody ask who can reach the port. A template of the policy's own is read if its tokenizer is
# named: pal serve ... --set serve.policy=$POLICY. Answers that cannot be scored get -10 here.
set -eu
POLICY=${POLICY:-HuggingFaceTB/SmolLM2-135M-Instruct}
PAL_SERVE_TOKEN=${PAL_SERVE_TOKEN:-$(openssl rand -hex 16)}
export PAL_SERVE_TOKEN

pal serve --model exports/NAME --host 0.0.0.0 --port 8000 --set serve.reward_of_failed=-10 &
trap 'kill $!' EXIT

python3 -m openrlhf.cli.train_ppo_ray \
   --actor.model_name_or_path "$POLICY" \
   --reward.remote_url "http://$(hostname):8000/get_reward/$PAL_SERVE_TOKEN" \
   --data.prompt_dataset prompts.jsonl \
   --data.input_key prompt \
   --data.label_key user_id \
   --data.apply_chat_template \
   --data.max_len 2048 \
   --algo.advantage.estimator group_norm \
   --rollout.n_samples_per_prompt 8 \
   --rollout.batch_size 128 \
   --train.batch_size 128 \
   --train.colocate_all \
   --vllm.num_engines 1 \
   --ckpt.output_dir checkpoint

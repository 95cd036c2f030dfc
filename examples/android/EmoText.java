import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import ai.onnxruntime.NodeInfo;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OnnxValue;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import ai.onnxruntime.TensorInfo;
import java.io.File;
import java.io.IOException;
import java.nio.FloatBuffer;
import java.nio.LongBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.Consumer;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** An exported ONNX folder that continues a text, the likeliest token each time. */
public final class EmoText implements AutoCloseable {
  private static final int LONGEST_CHARACTER = 4; // bytes of UTF-8, so at most as many tokens
  private static final String PAST = "past_key_values", PRESENT = "present";

  private final OrtEnvironment environment = OrtEnvironment.getEnvironment();
  private final OrtSession session;
  private final HuggingFaceTokenizer tokenizer;
  private final Set<Long> stopIds;
  private final int context;

  /** Opens a folder; threads: as many as the phone has fast cores. */
  public EmoText(File folder, int threads) throws IOException, OrtException {
    Map<String, String> whole = new HashMap<>();
    whole.put("addSpecialTokens", "false");
    whole.put("truncation", "false");
    tokenizer = HuggingFaceTokenizer.newInstance(new File(folder, "tokenizer.json").toPath(), whole);
    stopIds = new HashSet<>(numbers(new File(folder, "generation_config.json"), "eos_token_id"));
    context = numbers(new File(folder, "config.json"), "max_position_embeddings").get(0).intValue();
    try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
      options.setIntraOpNumThreads(threads);
      // Sleeping threads save the battery; spinning ones decode faster.
      options.addConfigEntry("session.intra_op.allow_spinning", "0");
      session = environment.createSession(new File(folder, "model.onnx").getPath(), options);
    }
  }

  /**
   * Gives text to `listener` as it comes, up to `count` tokens, a stop token or a full context. Not
   * for the main thread.
   */
  public void generate(String prompt, int count, Consumer<String> listener) throws OrtException {
    long[] ids = tokenizer.encode(prompt).getIds();
    if (ids.length == 0 || ids.length > context) {
      throw new IllegalArgumentException(
          "the prompt has " + ids.length + " tokens, expected 1 to " + context);
    }
    long[] waiting = {}; // tokens of a character that is not complete
    int length = 0;
    OrtSession.Result last = null;
    try (Empty empty = new Empty()) {
      for (int step = 0; step < count; step++) {
        length += ids.length;
        OrtSession.Result next = forward(ids, length, last == null ? empty.tensors : presents(last));
        if (last != null) {
          last.close();
        }
        last = next;
        long token = likeliest((OnnxTensor) last.get(0));
        if (stopIds.contains(token)) {
          break;
        }
        waiting = Arrays.copyOf(waiting, waiting.length + 1);
        waiting[waiting.length - 1] = token;
        String text = tokenizer.decode(waiting, false);
        if (!text.endsWith("\uFFFD") || waiting.length >= LONGEST_CHARACTER) {
          listener.accept(text);
          waiting = new long[0];
        }
        if (length == context) {
          break;
        }
        ids = new long[] {token};
      }
      if (waiting.length > 0) {
        listener.accept(tokenizer.decode(waiting, false));
      }
    } finally {
      if (last != null) {
        last.close();
      }
    }
  }

  @Override
  public void close() throws OrtException {
    session.close();
    tokenizer.close();
  }

  /** One step: new ids after the cached ones -> logits (1, T or 1, V), then the new cache. */
  private OrtSession.Result forward(long[] ids, int length, Map<String, OnnxTensor> past)
      throws OrtException {
    long[] seen = new long[length];
    Arrays.fill(seen, 1);
    try (OnnxTensor tokens = longs(ids);
        OnnxTensor mask = longs(seen)) {
      Map<String, OnnxTensor> inputs = new HashMap<>(past);
      inputs.put("input_ids", tokens);
      inputs.put("attention_mask", mask);
      return session.run(inputs);
    }
  }

  private OnnxTensor longs(long[] values) throws OrtException {
    return OnnxTensor.createTensor(
        environment, LongBuffer.wrap(values), new long[] {1, values.length});
  }

  /** The cache that a step left, under the names that the next one reads; it stays the result's. */
  private static Map<String, OnnxTensor> presents(OrtSession.Result result) {
    Map<String, OnnxTensor> cache = new HashMap<>();
    for (Map.Entry<String, OnnxValue> output : result) {
      if (output.getKey().startsWith(PRESENT)) {
        String name = PAST + output.getKey().substring(PRESENT.length());
        cache.put(name, (OnnxTensor) output.getValue());
      }
    }
    return cache;
  }

  /** The id with the largest logit at the last position. */
  private static long likeliest(OnnxTensor logits) {
    FloatBuffer values = logits.getFloatBuffer();
    int size = (int) logits.getInfo().getShape()[2];
    int start = values.limit() - size;
    int best = 0;
    for (int id = 1; id < size; id++) {
      if (values.get(start + id) > values.get(start + best)) {
        best = id;
      }
    }
    return best;
  }

  /** The integers of one key of a JSON file, which may be a number or a list of them. */
  private static List<Long> numbers(File file, String key) throws IOException {
    String json = new String(Files.readAllBytes(file.toPath()), StandardCharsets.UTF_8);
    Matcher found =
        Pattern.compile("\"" + key + "\"\\s*:\\s*\\[?\\s*(\\d+(?:\\s*,\\s*\\d+)*)").matcher(json);
    if (!found.find()) {
      throw new IOException(file + " has no " + key);
    }
    List<Long> result = new ArrayList<>();
    for (String number : found.group(1).split("\\s*,\\s*")) {
      result.add(Long.parseLong(number));
    }
    return result;
  }

  /** The cache of an empty sequence: (1, heads, 0, head size) for each layer's keys and values. */
  private final class Empty implements AutoCloseable {
    final Map<String, OnnxTensor> tensors = new HashMap<>();

    Empty() throws OrtException {
      for (Map.Entry<String, NodeInfo> input : session.getInputInfo().entrySet()) {
        if (input.getKey().startsWith(PAST)) {
          long[] shape = ((TensorInfo) input.getValue().getInfo()).getShape().clone();
          shape[0] = 1;
          shape[2] = 0;
          tensors.put(
              input.getKey(),
              OnnxTensor.createTensor(environment, FloatBuffer.allocate(0), shape));
        }
      }
    }

    @Override
    public void close() {
      tensors.values().forEach(OnnxTensor::close);
    }
  }

  /** On a desktop: java EmoText FOLDER PROMPT [TOKENS]. */
  public static void main(String[] arguments) throws Exception {
    if (arguments.length < 2) {
      System.err.println("usage: EmoText FOLDER PROMPT [TOKENS]");
      System.exit(2);
    }
    int count = arguments.length > 2 ? Integer.parseInt(arguments[2]) : 64;
    java.io.PrintStream out = new java.io.PrintStream(System.out, true, "UTF-8");
    try (EmoText model = new EmoText(new File(arguments[0]), 1)) {
      model.generate(arguments[1], count, out::print);
    }
    out.println();
  }
}

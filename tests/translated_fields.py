"""What becomes of each field of the official SDKs' request types, as it was decided.

One type a line: `+` carried or mapped, `~` left out and told, `!` refused by its name, `.` says nothing that another API
would have to know (or nothing but what the object around it says, which is decided there). The types in `REFUSED` are
refused with the field that holds them.
"""

from __future__ import annotations

DECIDED = {
    "anthropic": """
        MessageCreateParamsNonStreaming: +max_tokens +messages +model ~cache_control .container ~diagnostics
            !inference_geo .metadata .output_config +service_tier ~speed +stop_sequences +system +thinking
            +tool_choice +tools ~user_profile_id ~workspace_id
        UserMessageParam: +content
        AssistantMessageParam: +content
        SystemMessageParam: +content
        CacheControlEphemeralParam: .ttl
        DiagnosticsParam: .previous_message_id
        MetadataParam: +user_id
        OutputConfigParam: +effort +format
        TextBlockParam: +text +cache_control ~citations
        ThinkingConfigEnabledParam: +budget_tokens +display
        ThinkingConfigAdaptiveParam: +display
        ToolChoiceAutoParam: +disable_parallel_tool_use
        ToolChoiceAnyParam: +disable_parallel_tool_use
        ToolChoiceToolParam: +name +disable_parallel_tool_use
        ToolParam: +input_schema +name ~allowed_callers +cache_control ~defer_loading +description
            ~eager_input_streaming ~input_examples +strict
        ImageBlockParam: +source +cache_control ~transformations
        DocumentBlockParam: +source +cache_control .citations !context +title
        ThinkingBlockParam: +signature +thinking
        RedactedThinkingBlockParam: +data
        ToolUseBlockParam: +id +input +name +cache_control .caller !toolset_name
        ToolResultBlockParam: +tool_use_id +cache_control +content +is_error !toolset_name
        JSONOutputFormatParam: +schema
        CitationCharLocationParam: .cited_text .document_index .document_title .end_char_index .start_char_index
        CitationPageLocationParam: .cited_text .document_index .document_title .end_page_number .start_page_number
        CitationContentBlockLocationParam: .cited_text .document_index .document_title .end_block_index
            .start_block_index
        CitationWebSearchResultLocationParam: .cited_text .encrypted_index .title .url
        CitationSearchResultLocationParam: .cited_text .end_block_index .search_result_index .source
            .start_block_index .title
        InputSchemaTyped: +properties +required
        Base64ImageSourceParam: +data +media_type
        URLImageSourceParam: +url
        FileImageSourceParam: +file_id
        ImageTransformationsParam: .oversized_image
        Base64PDFSourceParam: +data
        PlainTextSourceParam: +data
        URLPDFSourceParam: +url
        FileDocumentSourceParam: +file_id
        ServerToolCallerParam: .tool_id
        ServerToolCaller20260120Param: .tool_id
        WebFetchURLSourceOnlyParam: !tools
        WebFetchURLSourceExceptParam: !tools
    """,
    "chat": """
        CompletionCreateParamsNonStreaming: +messages +model !audio +frequency_penalty !function_call !functions
            !logit_bias +logprobs +max_completion_tokens +max_tokens +metadata !modalities !moderation +n
            +parallel_tool_calls ~prediction +presence_penalty +prompt_cache_key ~prompt_cache_options
            ~prompt_cache_retention +reasoning_effort .response_format +safety_identifier +seed +service_tier +stop
            +store .stream_options +temperature +tool_choice +tools +top_logprobs +top_p +user +verbosity
            !web_search_options
        ChatCompletionDeveloperMessageParam: +content +name
        ChatCompletionSystemMessageParam: +content +name
        ChatCompletionUserMessageParam: +content +name
        ChatCompletionAssistantMessageParam: !audio +content +function_call +name +refusal +tool_calls
        ChatCompletionToolMessageParam: +content +tool_call_id
        ChatCompletionFunctionMessageParam: +content +name
        Function: !name !description !parameters +name +arguments
        ChatCompletionPredictionContentParam: .content
        PromptCacheOptions: .mode
        ResponseFormatJSONSchema: +json_schema
        ChatCompletionStreamOptionsParam: .include_obfuscation +include_usage
        ChatCompletionAllowedToolChoiceParam: +allowed_tools
        ChatCompletionNamedToolChoiceParam: +function
        ChatCompletionNamedToolChoiceCustomParam: +custom
        ChatCompletionFunctionToolParam: +function
        ChatCompletionCustomToolParam: +custom
        ChatCompletionContentPartTextParam: +text +prompt_cache_breakpoint
        ChatCompletionContentPartImageParam: +image_url +prompt_cache_breakpoint
        ChatCompletionContentPartInputAudioParam: +input_audio +prompt_cache_breakpoint
        File: +file +prompt_cache_breakpoint
        ChatCompletionContentPartRefusalParam: +refusal
        FunctionCall: +arguments +name
        ChatCompletionMessageFunctionToolCallParam: +id +function
        ChatCompletionMessageCustomToolCallParam: +id +custom
        JSONSchema: +name +description +schema +strict
        ChatCompletionAllowedToolsParam: +mode +tools
        Custom: +name +description .format +input
        FunctionDefinition: +name +description +parameters +strict
        PromptCacheBreakpoint: .ttl
        ImageURL: +url +detail
        InputAudio: +data +format
        FileFile: +file_data +file_id +filename
        FilePromptCacheBreakpoint: .ttl
        CustomFormatGrammar: +grammar
        CustomFormatGrammarGrammar: +definition +syntax
    """,
    "responses": """
        ResponseCreateParamsNonStreaming: .access_programs !background .background_options !context_management
            !conversation .image +include +input +instructions +max_output_tokens !max_tool_calls +metadata +model
            !moderation +parallel_tool_calls !previous_response_id !prompt +prompt_cache_key ~prompt_cache_options
            ~prompt_cache_retention .reasoning +safety_identifier +service_tier !store .stream_options +temperature
            .text +tool_choice +tools +top_logprobs +top_p .truncation +user
        EasyInputMessageParam: +content +role ~phase
        Message: +content +role .status
        ResponseOutputMessageParam: .id +content .status ~phase
        ResponseFunctionToolCallParam: !async +arguments +call_id +name .id .caller !namespace .status
        FunctionCallOutput: +output .id +call_id .caller .name !namespace .status
        AdditionalTools: +tools .id
        ResponseReasoningItemParam: +id +summary .content +encrypted_content .status
        ResponseCustomToolCallOutputParam: +call_id +output .id .caller
        ResponseCustomToolCallParam: !async +call_id +input +name .id .caller !namespace
        PromptCacheOptions: .comparison_response_id .mode .prewarm .ttl
        Reasoning: ~context +effort +generate_summary !mode +summary !effort
        StreamOptions: .include_obfuscation
        ResponseTextConfigParam: .format +verbosity
        ToolChoiceAllowedParam: +mode +tools
        ToolChoiceFunctionParam: +name
        ToolChoiceCustomParam: +name
        FunctionToolParam: !async +name +parameters +strict ~allowed_callers ~defer_loading +description
            ~output_schema
        CustomToolParam: !async +name ~allowed_callers ~defer_loading +description .format
        ResponseInputTextParam: +text +prompt_cache_breakpoint
        ResponseInputImageParam: +detail +file_id +image_url +prompt_cache_breakpoint
        ResponseInputFileParam: ~detail +file_data +file_id +file_url +filename +prompt_cache_breakpoint
        ResponseOutputTextParam: .annotations +text .logprobs
        ResponseOutputRefusalParam: +refusal
        CallerProgram: .caller_id
        ResponseInputTextContentParam: +text +prompt_cache_breakpoint
        ResponseInputImageContentParam: +detail +file_id +image_url +prompt_cache_breakpoint
        ResponseInputFileContentParam: ~detail +file_data +file_id +file_url +filename +prompt_cache_breakpoint
        FunctionCallOutputCallerProgram: .caller_id
        Summary: +text
        Content: +text
        ResponseFormatTextJSONSchemaConfigParam: +name +schema +description +strict
        Grammar: +definition +syntax
        PromptCacheBreakpoint: .ttl
        AnnotationFileCitation: .file_id .filename .index
        AnnotationURLCitation: .end_index .start_index .title .url
        AnnotationContainerFileCitation: .container_id .end_index .file_id .filename .start_index
        AnnotationFilePath: .file_id .index
        Logprob: .token .bytes .logprob .top_logprobs
        LogprobTopLogprob: .token .bytes .logprob
    """,
}

REFUSED = {
    "anthropic": """
        ContainerParams ToolBash20250124Param CodeExecutionTool20250522Param CodeExecutionTool20250825Param
        CodeExecutionTool20260120Param CodeExecutionTool20260521Param BrowserToolset20260801Param
        MemoryTool20250818Param ComputerToolset20260801Param ToolTextEditor20250124Param ToolTextEditor20250429Param
        ToolTextEditor20250728Param WebSearchTool20250305Param WebFetchTool20250910Param WebSearchTool20260209Param
        WebFetchTool20260209Param WebFetchTool20260309Param WebSearchTool20260318Param WebFetchTool20260318Param
        ToolSearchToolBm25_20251119Param ToolSearchToolRegex20251119Param SearchResultBlockParam
        ServerToolUseBlockParam WebSearchToolResultBlockParam WebFetchToolResultBlockParam
        CodeExecutionToolResultBlockParam BashCodeExecutionToolResultBlockParam
        TextEditorCodeExecutionToolResultBlockParam ToolSearchToolResultBlockParam ContainerUploadBlockParam
        SkillParams BrowserToolsetConfigsParam ComputerToolsetConfigsParam UserLocationParam CitationsConfigParam
        WebFetchURLSourcesParam ContentBlockSourceParam ToolReferenceBlockParam BrowserStateBlockParam
        WebSearchResultBlockParam WebSearchToolRequestErrorObjectParam WebFetchToolResultErrorBlockParam
        WebFetchBlockParam CodeExecutionToolResultErrorParam CodeExecutionResultBlockParam
        EncryptedCodeExecutionResultBlockParam BashCodeExecutionToolResultErrorParam BashCodeExecutionResultBlockParam
        TextEditorCodeExecutionToolResultErrorParam TextEditorCodeExecutionViewResultBlockParam
        TextEditorCodeExecutionCreateResultBlockParam TextEditorCodeExecutionStrReplaceResultBlockParam
        ToolSearchToolResultErrorParam ToolSearchToolSearchResultBlockParam BrowserCloseTabConfigParam
        BrowserDoubleClickConfigParam BrowserFileUploadConfigParam BrowserFindConfigParam BrowserFormInputConfigParam
        BrowserGetPageTextConfigParam BrowserHoldKeyConfigParam BrowserHoverConfigParam
        BrowserJavascriptExecConfigParam BrowserKeyConfigParam BrowserLeftClickConfigParam
        BrowserLeftClickDragConfigParam BrowserLeftMouseDownConfigParam BrowserLeftMouseUpConfigParam
        BrowserListTabsConfigParam BrowserMiddleClickConfigParam BrowserMouseMoveConfigParam
        BrowserNavigateConfigParam BrowserNewTabConfigParam BrowserReadConsoleConfigParam
        BrowserReadNetworkConfigParam BrowserReadPageConfigParam BrowserRightClickConfigParam
        BrowserScreenshotConfigParam BrowserScrollConfigParam BrowserScrollToConfigParam BrowserSwitchTabConfigParam
        BrowserTripleClickConfigParam BrowserTypeConfigParam BrowserWaitConfigParam BrowserZoomConfigParam
        ComputerCursorPositionConfigParam ComputerDoubleClickConfigParam ComputerHoldKeyConfigParam
        ComputerKeyConfigParam ComputerLeftClickConfigParam ComputerLeftClickDragConfigParam
        ComputerLeftMouseDownConfigParam ComputerLeftMouseUpConfigParam ComputerMiddleClickConfigParam
        ComputerMouseMoveConfigParam ComputerRightClickConfigParam ComputerScreenshotConfigParam
        ComputerScrollConfigParam ComputerTripleClickConfigParam ComputerTypeConfigParam ComputerWaitConfigParam
        ComputerZoomConfigParam BrowserStateTabEntryParam BrowserStateChangeTabOpenedParam
        BrowserStateChangeDownloadStartedParam BrowserStateChangeDownloadCompletedParam
        BrowserStateChangeDownloadFailedParam CodeExecutionOutputBlockParam BashCodeExecutionOutputBlockParam
        WebFetchURLSourceToolReferenceParam
    """,
    "chat": """
        ChatCompletionAudioParam ChatCompletionFunctionCallOptionParam Moderation WebSearchOptions Audio VoiceID
        ModerationPolicy WebSearchOptionsUserLocation ModerationPolicyInput ModerationPolicyOutput
        WebSearchOptionsUserLocationApproximate
    """,
    "responses": """
        AccessPrograms BackgroundOptions ContextManagement ResponseConversationParamParam Image
        ResponseFileSearchToolCallParam ResponseComputerToolCallParam ComputerCallOutput
        ResponseFunctionWebSearchParam ToolSearchCall ResponseToolSearchOutputItemParamParam
        ResponseConfigurationUpdateItemParamParam ResponseCompactionItemParamParam ImageGenerationCall
        ResponseCodeInterpreterToolCallParam LocalShellCall LocalShellCallOutput ShellCall ShellCallOutput
        ApplyPatchCall ApplyPatchCallOutput McpListTools McpApprovalRequest McpApprovalResponse McpCall
        CompactionTrigger ItemReference Program ProgramOutput Moderation ResponsePromptParam ToolChoiceTypesParam
        ToolChoiceMcpParam FileSearchToolParam ComputerUsePreviewToolParam WebSearchToolParam Mcp CodeInterpreter
        ImageGeneration FunctionShellToolParam NamespaceToolParam ToolSearchToolParam WebSearchPreviewToolParam
        ApplyPatchToolParam Result PendingSafetyCheck ActionClick ActionDoubleClick ActionDrag ActionKeypress
        ActionMove ActionScroll ActionType Click DoubleClick Drag Keypress Move Scroll Type
        ResponseComputerToolCallOutputScreenshotParam ComputerCallOutputAcknowledgedSafetyCheck ActionSearch
        ActionOpenPage ActionFind ToolMcp ToolCodeInterpreter ToolImageGeneration ToolSearchOutputNamespaceToolParam
        Text ImageGenerationCallError ImageGenerationCallSvgUsage OutputLogs OutputImage LocalShellCallAction
        ShellCallAction ShellCallCallerProgram LocalEnvironmentParam ContainerReferenceParam
        ResponseFunctionShellCallOutputContentParam ShellCallOutputCallerProgram ApplyPatchCallOperationCreateFile
        ApplyPatchCallOperationDeleteFile ApplyPatchCallOperationUpdateFile ApplyPatchCallCallerProgram
        ApplyPatchCallOutputCallerProgram McpListToolsTool McpProtocolError McpToolExecutionError HTTPError
        ModerationPolicy ComparisonFilter CompoundFilter RankingOptions Filters UserLocation
        McpAllowedToolsMcpToolFilter McpRequireApprovalMcpToolApprovalFilter
        CodeInterpreterContainerCodeInterpreterToolAuto ImageGenerationInputImageMask ImageGenerationSvg
        ContainerAutoParam ToolFunction ActionDragPath DragPath ActionSearchSource ToolMcpAllowedToolsMcpToolFilter
        ToolMcpRequireApprovalMcpToolApprovalFilter ToolCodeInterpreterContainerCodeInterpreterToolAuto
        ToolImageGenerationInputImageMask ToolImageGenerationSvg ImageGenerationCallErrorModerationDetails
        LocalSkillParam OutcomeExit ModerationPolicyInput ModerationPolicyOutput RankingOptionsHybridSearch
        McpRequireApprovalMcpToolApprovalFilterAlways McpRequireApprovalMcpToolApprovalFilterNever
        ContainerNetworkPolicyAllowlistParam ImageGenerationSvgReasoning SkillReferenceParam InlineSkillParam
        ToolMcpRequireApprovalMcpToolApprovalFilterAlways ToolMcpRequireApprovalMcpToolApprovalFilterNever
        ToolImageGenerationSvgReasoning ContainerNetworkPolicyDomainSecretParam InlineSkillSourceParam
    """,
}
